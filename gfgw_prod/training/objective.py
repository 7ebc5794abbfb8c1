"""What a cell is trained for: the weighted sum of its losses."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from gfgw_prod.losses.boundary import boundary_loss
from gfgw_prod.losses.energy import BatchFeatures, energy_loss
from gfgw_prod.losses.feature import feature_loss
from gfgw_prod.losses.flow import flow_distances, flow_loss
from gfgw_prod.losses.structure import structure_loss
from gfgw_prod.settings.training import LossSettings
from gfgw_prod.training.precision import Precision


class Losses(NamedTuple):
    """Means over a cell, scalars; a term without weight, or without what it compares, is zero.

    Each has its weight in ``LossSettings`` and its metric in the catalogue, of the same name.
    """

    total: Tensor
    flow: Tensor
    feature: Tensor
    structure: Tensor
    energy: Tensor
    lpips: Tensor
    consistency: Tensor
    boundary: Tensor


class Objective:
    """The losses of the settings.

    Args:
        weights: of the terms.
        extractor: ``(n, c, h, w)`` images in [-1, 1] to unit features ``(n, d)``.
        perceptual: LPIPS, or ``None`` where it has no weight.
        precision: the frozen networks' arithmetic.
    """

    def __init__(self, weights: LossSettings, extractor: nn.Module, perceptual: nn.Module | None, precision: Precision):
        self.weights, self.extractor, self.perceptual, self.precision = weights, extractor, perceptual, precision

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
        at_zero: Tensor | None = None,
        batch: BatchFeatures | None = None,
    ) -> Losses:
        """The losses of images ``(b, c, h, w)`` predicted of targets.

        Args:
            matched: features of the targets, ``(b, d)``, from the bank.
            features: of the predicted images, ``(b, d)``, where they are known already.
            batch: features of the step's whole batch, in a one-step step.
            at_zero: what the generator makes of the targets at time 0, where it only approaches the identity there.
        """
        w, terms = self.weights, {}
        terms["flow"] = flow_loss(predicted, target, huber=w.flow_huber, scales=w.flow_scales)
        if w.feature or w.structure or w.energy:
            features = self.features(predicted) if features is None else features
            terms["feature"] = feature_loss(features, matched)
            terms["structure"] = structure_loss(features, matched)
            if w.energy and batch is not None:
                terms["energy"] = energy_loss(features, batch)
        if self.perceptual is not None:
            with self.precision.autocast():
                terms["lpips"] = self.perceptual(predicted, target).float()
        if at_zero is not None:
            terms["boundary"] = boundary_loss(at_zero, target)
        return self._weighed(terms)

    def between_times(
        self,
        predicted: Tensor,
        nearer: Tensor,
        apart: Tensor,
        target: Tensor,
        *,
        huber: float,
        at_zero: Tensor | None = None,
    ) -> Losses:
        """The losses of images ``(b, c, h, w)`` predicted at a time, of what was predicted nearer to the targets.

        Args:
            nearer: without gradient.
            apart: noise between the two times, ``(b,)``: the derivative along the line is compared, not its part.
            target, at_zero: as for images predicted of targets.
            huber: radius per pixel of the distance.
        """
        distances = flow_distances(predicted, nearer, huber=huber, scales=1)
        terms = {"consistency": (distances / apart).mean()}
        if at_zero is not None:
            terms["boundary"] = boundary_loss(at_zero, target)
        return self._weighed(terms)

    def _weighed(self, terms: dict[str, Tensor]) -> Losses:
        zero = next(iter(terms.values())).new_zeros(())
        total = sum((getattr(self.weights, name) * term for name, term in terms.items()), start=zero)
        return Losses(total, **{name: terms.get(name, zero) for name in Losses._fields[1:]})
