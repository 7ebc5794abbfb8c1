"""Matching of one step: which bank rows to couple with, the coupling, and the target of each slot.

Features and row ids go in, row ids come out: nothing here knows images or where they are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gfgw_prod.data.stream import KeyedOrder
from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.distributed.transfers import to_device
from gfgw_prod.transport.columns import Columns
from gfgw_prod.transport.coupling import Options, Start
from gfgw_prod.transport.dual import PersistentDual
from gfgw_prod.transport.fgw import solve
from gfgw_prod.transport.fitted import FittedDual
from gfgw_prod.transport.plan import Plan
from gfgw_prod.transport.pot import DensePlan, solve_with_pot
from gfgw_prod.transport.usage import Usage

if TYPE_CHECKING:
    from gfgw_prod.features.bank import FeatureBank
    from gfgw_prod.settings.transport import TransportSettings

Solver = Callable[[Tensor, Tensor, Columns, Options, Tensor | None, Start], Plan | DensePlan]
BACKENDS: dict[str, Solver] = {"native": solve, "pot": solve_with_pot}


@dataclass(frozen=True)
class Match:
    """Targets of a step's ``B`` slots. It changes nothing until ``Matcher.accept``."""

    rows: Tensor  # (B,), row ids of the targets
    features: Tensor  # (B, d), unit feature rows of the targets
    generated: Tensor  # (B, d), the features that were matched
    labels: Tensor | None = None  # (B,), class ids, where slots match rows of their own class only
    coupling: Plan | DensePlan | None = None
    update_dual: Callable[[], None] | None = None
    dual_inputs: tuple[Tensor, ...] = ()  # what ``update_dual`` will use; checked to be finite

    def values(self) -> dict[str, float]:
        """Metrics of the coupling by catalogue tag; none without a coupling. Collective."""
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
    """Couples a step's generated features with the bank. Targets are the same on every rank.

    Args:
        bank_labels: class ids of the bank's rows, ``(N,)``, if slots may match rows of their own class only.
        num_classes: of the data set.
        seed: of the rows that subset scope draws.
    """

    def __init__(
        self,
        settings: TransportSettings,
        bank: FeatureBank,
        *,
        bank_labels: Tensor | None,
        num_classes: int,
        seed: int,
    ):
        self.settings, self.bank = settings, bank
        self._bank_labels, self._num_classes = bank_labels, num_classes
        # Also where the bank is: copied once.
        self._labels = None if bank_labels is None else to_device(bank_labels, bank.world.device)
        self._seed = seed
        self._draws = KeyedOrder(seed, bank.total, stream="bank")
        self._subset_rows = min(settings.subset_rows, bank.total)
        self.usage = Usage(bank.total, bank.world)
        self.dual: PersistentDual | FittedDual | None = None
        if settings.target != "independent" and settings.dual == "persistent":
            self.dual = PersistentDual(bank.total, bank.dim, settings.dual_epochs, bank.world)
        elif settings.is_fitted:
            self.dual = FittedDual(bank.total, bank_labels, bank.world)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        duals = self.dual.tensors() if self.dual else {}
        return {"last_used": self.usage.state()} | {f"dual.{name}": tensor for name, tensor in duals.items()}

    def fit(self, pixels: int) -> None:
        """Fit the potential to noise, where the settings ask for it; the bank must be encoded. Collective.

        Args:
            pixels: number of pixel values of an image.
        """
        if isinstance(self.dual, FittedDual):
            self.dual.fit(self.bank, pixels=pixels, epsilon=self.settings.epsilon, seed=self._seed)

    def changing(self) -> dict[str, RowTable]:
        """The tables that are not a function of the data alone, by the names of their tensors."""
        name = "dual.fitted" if isinstance(self.dual, FittedDual) else "dual.potential"
        return {"last_used": self.usage.last} | ({name: self.dual.potential} if self.dual else {})

    def match(
        self,
        features: Tensor,
        slot_rows: Tensor,
        slot_labels: Tensor,
        uniforms: Tensor,
        *,
        step: int,
        epsilon: float,
        structure_weight: float,
        noise: Tensor | None = None,
    ) -> Match:
        """Find targets for generated features ``(B, d)``. Collective: all ranks give the same.

        Args:
            slot_rows: row ids ``(B,)`` from the stream, the targets of ``target: independent``.
            slot_labels: class ids ``(B,)`` of the slots.
            uniforms: numbers ``(B,)`` in [0, 1) that ``target: sample`` draws with.
            epsilon, structure_weight: ε and λ of this step.
            noise: directions of the slots' noise, unit vectors ``(B, d)`` in the space of the bank's rows, if similar
                noise shall get similar targets.
        """
        labels = None if self._bank_labels is None else to_device(slot_labels, features.device)
        if self.settings.target == "independent":
            return Match(to_device(slot_rows, features.device), self.bank.rows(slot_rows), features, labels)

        if isinstance(self.dual, FittedDual):
            assert noise is not None
            rows = self.dual.targets(noise, self._columns(features, labels, None), labels)
            return Match(rows, self.bank.rows(rows), features, labels)

        # Couple.
        candidates = self._candidates(step, slot_rows, slot_labels)
        columns = self._columns(features, labels, candidates)
        options = self._options(epsilon, structure_weight, noise)
        p = features.new_full((len(features),), 1 / len(features))
        start = Start() if self.dual is None else self.dual.start(candidates, first=step == 0)
        coupling = BACKENDS[self.settings.backend](features, p, columns, options, labels, start)

        # What a persistent dual would learn, should the step count.
        update_dual: Callable[[], None] | None = None
        dual_inputs: tuple[Tensor, ...] = ()
        if self.dual is not None:
            assert isinstance(coupling, Plan)
            update_dual = self.dual.lesson(coupling, columns, candidates, start)
            dual_inputs = coupling.solver.column_ratio, coupling.state

        # Choose a target per slot.
        chosen = coupling.sample(uniforms) if self.settings.target == "sample" else coupling.argmax()
        rows = chosen if candidates is None else to_device(candidates, chosen.device)[chosen]
        return Match(rows, self.bank.rows(rows), features, labels, coupling, update_dual, dual_inputs)

    def accept(self, match: Match, images: int) -> None:
        """Record the rows as targets of the step that ends at ``images`` images seen, and update the dual."""
        self.usage.mark(match.rows, images)
        if match.update_dual is not None:
            match.update_dual()

    def _candidates(self, step: int, slot_rows: Tensor, slot_labels: Tensor) -> Tensor | None:
        """Row ids that every rank couples with; ``None`` for all rows, each on the rank that holds it."""
        if self.settings.scope == "full":
            return torch.arange(self.bank.total) if self.settings.backend == "pot" else None
        drawn = self._draws.rows(step * self._subset_rows, self._subset_rows)
        if self._bank_labels is None:
            return drawn
        # A slot whose class was not drawn adds its own row of the stream, or it could match nothing.
        present = torch.zeros(self._num_classes, dtype=torch.bool)
        present[self._bank_labels[drawn]] = True
        return torch.cat([drawn, slot_rows[~present[slot_labels]].unique()])

    def _columns(self, features: Tensor, slot_labels: Tensor | None, candidates: Tensor | None) -> Columns:
        """The columns and their masses: uniform, or with classes, each class shares the mass of its slots.

        ``slot_labels`` are on the device of the features already: one copy a step.
        """
        bank = self.bank
        total = bank.total if candidates is None else len(candidates)
        mass, labels = features.new_full((total,), 1 / total), None
        if self._labels is not None and slot_labels is not None:
            labels = self._labels if candidates is None else self._labels[to_device(candidates, features.device)]
            class_mass = self._class_counts(slot_labels).to(features) / len(slot_labels)
            mass = (class_mass / self._class_counts(labels).clamp_min(1))[labels]
        if candidates is not None:
            return Columns(bank.rows(candidates), mass, labels)
        own = slice(bank.start, bank.end)
        labels = None if labels is None else labels[own]
        return Columns(bank.local, mass[own], labels, bank.block_rows, bank.start, bank.world)

    def _options(self, epsilon: float, structure_weight: float, noise: Tensor | None) -> Options:
        s = self.settings
        return Options(
            structure_weight=structure_weight,
            epsilon=epsilon,
            geometry=s.geometry,
            max_outer_iterations=s.outer_iterations,
            max_inner_iterations=s.inner_iterations,
            tolerance=s.tolerance,
            fixed_iterations=s.iterations == "fixed",
            noise_term=None if noise is None else s.noise_weight * noise,
            dual_balance=None if self.dual is None else s.dual_balance,
        )

    def _class_counts(self, labels: Tensor) -> Tensor:
        """Number of labels of each class, ``(classes,)``. ``bincount`` would have the host wait for the largest."""
        return labels.new_zeros(self._num_classes).index_add_(0, labels, torch.ones_like(labels))
