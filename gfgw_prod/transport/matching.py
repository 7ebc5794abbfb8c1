"""One step's matching: which bank rows to couple to, the coupling, and each slot's target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from gfgw_prod.data.stream import KeyedOrder
from gfgw_prod.settings import schedule
from gfgw_prod.transport.columns import Columns
from gfgw_prod.transport.coupling import Backend, Coupling, Options, Start
from gfgw_prod.transport.dual import PersistentDual
from gfgw_prod.transport.fgw import solve
from gfgw_prod.transport.plan import Plan
from gfgw_prod.transport.pot import solve_with_pot
from gfgw_prod.transport.usage import Usage

if TYPE_CHECKING:
    from gfgw_prod.data.sources import Table
    from gfgw_prod.features.bank import FeatureBank
    from gfgw_prod.settings.transport import TransportSettings

BACKENDS: dict[str, Backend] = {"native": solve, "pot": solve_with_pot}


@dataclass(frozen=True)
class Match:
    """Targets of a step's ``B`` slots."""

    rows: Tensor  # (B,) row ids of the data set; of a mixture, its heaviest
    features: Tensor  # (B, d), unit rows
    generated: Tensor  # (B, d), what was matched with them
    labels: Tensor | None = None  # (B,) class ids, if slots match rows of their class only
    mixed: Tensor | None = None  # (B, c, h, w), where targets are mixtures of images
    coupling: Coupling | None = None
    lesson: Callable[[], None] | None = None  # corrects the persistent dual by what this coupling found
    learned: tuple[Tensor, ...] = ()  # what the lesson builds on, of this rank's columns and of all

    @cached_property
    def rows_on_host(self) -> Tensor:
        """``rows`` where the data set is: one of the two things that the host waits for in a step."""
        return self.rows.cpu()

    def target_images(self, table: Table, slots: slice) -> Tensor:
        """Images the slots regress onto, ``(b, c, h, w)`` in [-1, 1]."""
        return table.rows(self.rows_on_host[slots]) if self.mixed is None else self.mixed[slots]

    def target_features(self, slots: slice) -> Tensor:
        """Unit feature rows of the targets, ``(b, d)``."""
        return self.features[slots]

    def values(self) -> dict[str, float]:
        """How the coupling went, by tag of the catalogue; nothing without one. Collective."""
        if self.coupling is None:
            return {}
        status = self.coupling.status
        return {
            "transport/marginal_error": status.marginal_error,
            "transport/outer_iterations": status.outer_iterations,
            "transport/inner_iterations": status.inner_iterations,
            "transport/converged": float(status.converged),
            "transport/sharpness": self.coupling.sharpness(),
        }


class Matcher:
    """Couples a step's generated features with the bank; targets come out alike on every rank."""

    def __init__(self, settings: TransportSettings, bank: FeatureBank, table: Table, *, seed: int, conditional: bool):
        self.settings, self.bank, self.table = settings, bank, table
        self._labels = table.labels if conditional else None
        self._draws = KeyedOrder(seed, bank.total, stream="bank")
        self._rows = min(settings.subset_rows, bank.total)
        self.usage = Usage(bank.total, bank.world)
        self.dual: PersistentDual | None = None
        if settings.dual == "persistent" and settings.target != "independent":
            self.dual = PersistentDual(bank.total, bank.dim, settings.dual_epochs, bank.world)

    def epsilon(self, images: int) -> float:
        """ε after ``images`` images."""
        s = self.settings
        return schedule.exponential(s.epsilon, s.epsilon_end, s.epsilon_kimg, images)

    def structure_weight(self, images: int) -> float:
        """λ after ``images`` images."""
        s = self.settings
        return schedule.linear(s.structure_weight, s.structure_weight_end, s.structure_weight_kimg, images)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        duals = self.dual.tensors() if self.dual else {}
        return {"last_used": self.usage.state()} | {f"dual.{name}": tensor for name, tensor in duals.items()}

    def match(
        self,
        features: Tensor,
        slot_rows: Tensor,
        slot_labels: Tensor,
        uniforms: Tensor,
        *,
        step: int,
        images: int,
        noise: Tensor | None = None,
    ) -> Match:
        """Targets for generated features ``(B, d)``. Collective: ranks must call it alike.

        Args:
            slot_rows: row ids ``(B,)`` that the stream brought, the targets of ``target: independent``.
            slot_labels: class ids ``(B,)``; with a conditional generator, slots match rows of their class only.
            uniforms: numbers ``(B,)`` in [0, 1) that ``target: sample`` draws with.
            images: images seen before this step.
            noise: what the features were generated of, ``(B, c, h, w)``, for a cost with ``noise_weight``.

        Returns:
            Targets that change nothing until they are accepted.
        """
        x = features
        row_labels = None if self._labels is None else slot_labels.to(x.device)
        if self.settings.target == "independent":
            return Match(slot_rows.to(x.device), self.bank.rows(slot_rows), x, row_labels)
        candidates = None  # all rows, each where it is
        if self.settings.backend == "pot" and self.settings.scope == "full":
            candidates = torch.arange(self.bank.total)
        elif self.settings.scope == "subset":
            candidates = self._with_all_classes(self._draws.rows(step * self._rows, self._rows), slot_rows, slot_labels)
        columns = self._columns(x, slot_labels, candidates)
        coupling, lesson = self._couple(x, columns, slot_labels, candidates, step, images, noise)
        chosen = coupling.sample(uniforms) if self.settings.target == "sample" else coupling.argmax()
        rows = chosen if candidates is None else candidates.to(chosen.device)[chosen]
        if self.settings.target != "barycentric":
            return Match(rows, self.bank.rows(rows), x, row_labels, None, coupling, lesson, self._learned(coupling))
        mixed = self._mixtures(coupling, columns, candidates)
        d = x.shape[1]
        images_mixed = mixed[:, d:].unflatten(1, self.table.image_shape)
        features = normalize(mixed[:, :d], dim=1)
        return Match(rows, features, x, row_labels, images_mixed, coupling, lesson, self._learned(coupling))

    def accept(self, match: Match, images: int) -> None:
        """Marks the rows as targets of the step that ends at ``images`` images seen; a persistent dual learns."""
        self.usage.mark(match.rows, images)
        if match.lesson is not None:
            match.lesson()

    def _couple(
        self,
        x: Tensor,
        columns: Columns,
        slot_labels: Tensor,
        candidates: Tensor | None,
        step: int,
        images: int,
        noise: Tensor | None,
    ) -> tuple[Coupling, Callable[[], None] | None]:
        s = self.settings
        options = Options(
            structure_weight=self.structure_weight(images),
            epsilon=self.epsilon(images),
            geometry=s.geometry,
            max_outer_iterations=s.outer_iterations,
            max_inner_iterations=s.inner_iterations,
            tolerance=s.tolerance,
            fixed_trips=s.iterations == "fixed",
            noise_term=None if noise is None else self._pull(noise),
            dual_balance=None if self.dual is None else s.dual_balance,
        )
        p = x.new_full((len(x),), 1 / len(x))
        row_labels = None if self._labels is None else slot_labels.to(x.device)
        start = Start() if self.dual is None else self.dual.start(candidates, first=step == 0)
        coupling = BACKENDS[s.backend](x, p, columns, options, row_labels, start)
        if self.dual is None:
            return coupling, None
        assert isinstance(coupling, Plan)
        return coupling, partial(self.dual.learn, coupling, columns, candidates, start)

    def _pull(self, noise: Tensor) -> Tensor:
        """Where noise ``(B, c, h, w)`` draws its slot's target to in the space of pixel features, ``(B, d)``."""
        directions = normalize(noise.flatten(1), dim=1)
        return self.settings.noise_weight * pad(directions, (0, self.bank.dim - directions.shape[1]))

    def _learned(self, coupling: Coupling) -> tuple[Tensor, ...]:
        return (coupling.solver.column_ratio, coupling.state) if self.dual and isinstance(coupling, Plan) else ()

    def _columns(self, x: Tensor, slot_labels: Tensor, candidates: Tensor | None) -> Columns:
        """The columns and their masses: uniform; with classes, each class's columns share the mass of its rows."""
        bank = self.bank
        total = bank.total if candidates is None else len(candidates)
        mass, labels = x.new_full((total,), 1 / total), None
        if self._labels is not None:
            labels = (self._labels if candidates is None else self._labels[candidates]).to(x.device)
            row_mass = self._by_class(slot_labels.to(x.device)).to(x) / len(slot_labels)
            mass = (row_mass / self._by_class(labels).clamp_min(1))[labels]
        if candidates is not None:
            return Columns(bank.rows(candidates), mass, labels)
        own = slice(bank.start, bank.end)
        labels = None if labels is None else labels[own]
        return Columns(bank.local, mass[own], labels, bank.block_rows, bank.start, bank.world)

    def _by_class(self, labels: Tensor) -> Tensor:
        """How many labels are of each class; unlike ``bincount``, without the host looking for the largest."""
        return labels.new_zeros(self.table.num_classes).index_add_(0, labels, torch.ones_like(labels))

    def _with_all_classes(self, drawn: Tensor, slot_rows: Tensor, slot_labels: Tensor) -> Tensor:
        """The drawn rows; slots of a class that was not drawn bring the row of their own label along."""
        if self._labels is None:
            return drawn
        present = torch.zeros(self.table.num_classes, dtype=torch.bool)
        present[self._labels[drawn]] = True
        return torch.cat([drawn, slot_rows[~present[slot_labels]].unique()])

    def _mixtures(self, coupling: Coupling, columns: Columns, candidates: Tensor | None) -> Tensor:
        """Each slot's mean of features and images, side by side, ``(B, d + c h w)``."""

        def side_by_side(block: slice) -> Tensor:
            ids = torch.arange(columns.first + block.start, columns.first + block.stop)
            images = self.table.rows(ids if candidates is None else candidates[ids]).flatten(1)
            return torch.cat([columns.features[block], images.to(columns.features.device)], dim=1)

        return coupling.barycentre(side_by_side, self.bank.dim + math.prod(self.table.image_shape))
