"""One step's matching: which bank rows to couple to, the coupling, and each slot's target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from gfgw_prod import schedule
from gfgw_prod.data.stream import KeyedOrder
from gfgw_prod.transport.fgw import Status, fused_gromov_wasserstein
from gfgw_prod.transport.pot import pot_plan

if TYPE_CHECKING:
    from gfgw_prod.config import TransportSettings
    from gfgw_prod.data.sources import Table
    from gfgw_prod.features.bank import FeatureBank


class Coupling(Protocol):
    """What a backend returns."""

    @property
    def status(self) -> Status: ...

    def argmax(self) -> Tensor: ...

    def sample(self, uniforms: Tensor) -> Tensor: ...

    def conditional(self) -> Tensor: ...


@dataclass(frozen=True)
class Match:
    """Targets of a step's ``B`` slots among ``m`` candidate rows of the data set."""

    candidates: Tensor  # (m,) row ids
    features: Tensor  # (m, d) their bank rows
    chosen: Tensor | None  # (B,) positions among the candidates
    weights: Tensor | None  # (B, m), each slot's mixture of candidates (barycentric)
    status: Status

    def target_images(self, table: Table, slots: slice) -> Tensor:
        """Images the slots regress onto, ``(b, c, h, w)`` in [-1, 1]."""
        if self.chosen is not None:
            return table.rows(self.candidates[self.chosen[slots]].cpu())
        assert self.weights is not None
        images = table.rows(self.candidates.cpu())
        mixed: Tensor = self.weights[slots].cpu() @ images.flatten(1)
        return mixed.view(-1, *images.shape[1:])

    def target_features(self, slots: slice) -> Tensor:
        """Unit feature rows of the targets, ``(b, d)``."""
        if self.chosen is not None:
            return self.features[self.chosen[slots]]
        assert self.weights is not None
        return torch.nn.functional.normalize(self.weights[slots] @ self.features, dim=1)


class Matcher:
    """Couples a step's generated features with the bank, alike on every rank."""

    def __init__(self, settings: TransportSettings, bank: FeatureBank, labels: Tensor, *, seed: int, conditional: bool):
        self.settings, self.bank = settings, bank
        self._labels = labels if conditional else None
        self._draws = KeyedOrder(seed, bank.total, stream="bank")
        self._rows = min(settings.subset_rows, bank.total)

    def epsilon(self, images: int) -> float:
        """ε after ``images`` images."""
        s = self.settings
        return schedule.exponential(s.epsilon, s.epsilon_end, s.epsilon_kimg, images)

    def structure_weight(self, images: int) -> float:
        """λ after ``images`` images."""
        s = self.settings
        return schedule.linear(s.structure_weight, s.structure_weight_end, s.structure_weight_kimg, images)

    def match(
        self,
        features: Tensor,
        slot_rows: Tensor,
        slot_labels: Tensor,
        uniforms: Tensor,
        *,
        step: int,
        images: int,
    ) -> Match:
        """Targets for generated features ``(B, d)``. Collective: ranks must call it alike.

        Args:
            slot_rows: row ids ``(B,)`` that the stream brought, the targets of ``target: independent``.
            slot_labels: class ids ``(B,)``; with a conditional generator, slots match rows of their class only.
            uniforms: numbers ``(B,)`` in [0, 1) that ``target: sample`` draws with.
        """
        if self.settings.target == "independent":
            unsolved = Status(converged=True, outer_iterations=0, inner_iterations=0, marginal_error=0.0)
            everyone = torch.arange(len(slot_rows), device=features.device)
            return Match(slot_rows.to(features.device), self.bank.rows(slot_rows), everyone, None, unsolved)
        if self.settings.scope == "full":
            candidates, rows = torch.arange(self.bank.total), self.bank.whole()
        else:
            candidates = self._with_all_classes(self._draws.rows(step * self._rows, self._rows), slot_rows, slot_labels)
            rows = self.bank.rows(candidates)
        p, q, forbidden = self._marginals(features, slot_labels, candidates)
        coupling = self._couple(features, rows, p, q, forbidden, images)
        chosen = weights = None
        if self.settings.target == "barycentric":
            weights = coupling.conditional()
        elif self.settings.target == "sample":
            chosen = coupling.sample(uniforms)
        else:
            chosen = coupling.argmax()
        return Match(candidates.to(rows.device), rows, chosen, weights, coupling.status)

    def _with_all_classes(self, drawn: Tensor, slot_rows: Tensor, slot_labels: Tensor) -> Tensor:
        """The drawn rows; slots of a class that was not drawn bring the row of their own label along."""
        if self._labels is None:
            return drawn
        present = torch.zeros(int(self._labels.max()) + 1, dtype=torch.bool)
        present[self._labels[drawn]] = True
        return torch.cat([drawn, slot_rows[~present[slot_labels]]])

    def _couple(self, x: Tensor, y: Tensor, p: Tensor, q: Tensor, forbidden: Tensor | None, images: int) -> Coupling:
        s = self.settings
        options: dict[str, Any] = {
            "structure_weight": self.structure_weight(images),
            "epsilon": self.epsilon(images),
            "max_outer_iterations": s.outer_iterations,
            "max_inner_iterations": s.inner_iterations,
            "tolerance": s.tolerance,
        }
        if s.backend == "pot":
            return pot_plan(x, y, p, q, **options)
        return fused_gromov_wasserstein(x, y, p, q, forbidden=forbidden, **options)

    def _marginals(
        self, features: Tensor, slot_labels: Tensor, candidates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Uniform marginals; with classes, each class's columns share the mass of its rows."""
        p = features.new_full((len(features),), 1 / len(features))
        q = features.new_full((len(candidates),), 1 / len(candidates))
        if self._labels is None:
            return p, q, None
        row_class, column_class = slot_labels.to(p.device), self._labels[candidates].to(p.device)
        classes = int(self._labels.max()) + 1
        row_mass = torch.bincount(row_class, minlength=classes).to(p) / len(p)
        columns = torch.bincount(column_class, minlength=classes)
        q = (row_mass / columns.clamp_min(1))[column_class]
        return p, q, row_class[:, None] != column_class[None, :]
