"""The objective of a cell: the weighted sum of its losses."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from gfgw_prod.losses.energy import BatchFeatures, energy_loss
from gfgw_prod.losses.feature import feature_loss
from gfgw_prod.losses.flow import flow_distances, flow_loss
from gfgw_prod.losses.structure import structure_loss
from gfgw_prod.settings.training import LossSettings
from gfgw_prod.training.precision import Precision


class Losses(NamedTuple):
    """Means over a cell, scalars. A term that the weights or the inputs do not call for is zero.

    Each term has a weight in ``LossSettings`` and a metric in the catalogue, of the same name.
    """

    total: Tensor
    flow: Tensor
    feature: Tensor
    structure: Tensor
    energy: Tensor
    lpips: Tensor
    consistency: Tensor


class Objective:
    """Computes the losses that have a weight.

    Args:
        extractor: frozen network from images ``(n, c, h, w)`` in [-1, 1] to unit features ``(n, d)``.
        perceptual: LPIPS, or ``None`` if it has no weight.
    """

    def __init__(self, weights: LossSettings, extractor: nn.Module, perceptual: nn.Module | None, precision: Precision):
        self.weights, self.extractor, self.perceptual, self.precision = weights, extractor, perceptual, precision

    @property
    def frozen(self) -> list[nn.Module]:
        """The networks that are used and not trained."""
        return [self.extractor, *([] if self.perceptual is None else [self.perceptual])]

    def features(self, images: Tensor) -> Tensor:
        """Unit features ``(b, d)`` of images."""
        with self.precision.autocast():
            features: Tensor = self.extractor(images)
        return features.float()

    def __call__(
        self,
        predicted: Tensor,
        target: Tensor,
        matched: Tensor,
        *,
        features: Tensor | None = None,
        batch: BatchFeatures | None = None,
    ) -> Losses:
        """Losses of predicted images ``(b, c, h, w)`` against their targets.

        Args:
            matched: bank features of the targets, ``(b, d)``.
            features: of the predicted images, ``(b, d)``, if they are known already.
            batch: features of the step's whole batch, if the predicted images are one-step samples.
        """
        w, terms = self.weights, {}
        terms["flow"] = flow_loss(predicted, target, huber=w.flow_huber, scales=w.flow_scales)
        if w.compares_features:
            features = self.features(predicted) if features is None else features
            terms["feature"] = feature_loss(features, matched)
            terms["structure"] = structure_loss(features, matched)
            if w.energy and batch is not None:
                terms["energy"] = energy_loss(features, batch)
        if self.perceptual is not None:
            with self.precision.autocast():
                terms["lpips"] = self.perceptual(predicted, target).float()
        return self._weighted(terms)

    def consistency(self, predicted: Tensor, nearer: Tensor, apart: Tensor, *, huber: float) -> Losses:
        """Consistency loss of images ``(b, c, h, w)`` predicted at time t against those predicted at a nearer time.

        Args:
            nearer: the other prediction, without gradient.
            apart: noise between the two times, ``(b,)``. Distances are divided by it, which compares derivatives.
        """
        return self._weighted(
            {"consistency": (flow_distances(predicted, nearer, huber=huber, scales=1) / apart).mean()}
        )

    def _weighted(self, terms: dict[str, Tensor]) -> Losses:
        zero = next(iter(terms.values())).new_zeros(())
        total = sum((getattr(self.weights, name) * term for name, term in terms.items()), start=zero)
        return Losses(total, **{name: terms.get(name, zero) for name in Losses._fields[1:]})
