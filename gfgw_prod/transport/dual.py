"""Persistent duals: potentials kept across steps, which couple the generator's whole distribution with the data set.

In semi-discrete optimal transport only the columns' potential ``g`` is unknown; each row's follows from it. A batch
gives a noisy estimate, so the correction is averaged (Mensch and Peyré 2020, "Online Sinkhorn"; mathematics.md, eq. 8):

    exp(-g_j / ε)  ←  (1 - η) exp(-g_j / ε) + η exp(-g_j / ε) c_j / q_j

with ``c = Tᵀ 1`` the mass that a batch gives column ``j`` under ``g``, and ``η = 1 - exp(-n / (epochs N))``. A batch's
own coupling also enforces most of its own column marginal (``Sinkhorn.run_once``): when the averaged potential alone
chose the targets, neighbours in a batch crowded on the columns that were underused, and the generator blurred.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.distributed.world import World
from gfgw_prod.transport.columns import Columns
from gfgw_prod.transport.coupling import Start
from gfgw_prod.transport.plan import Plan


class PersistentDual:
    """The potential of every bank row, by global row id, in units of the cost; and the last state ``S (d, d)``."""

    def __init__(self, total: int, dim: int, epochs: float, world: World):
        self.epochs = epochs
        self.potential = RowTable(total, (), world)
        self.state = torch.zeros(dim, dim, device=world.device)

    def start(self, candidates: Tensor | None, *, first: bool) -> Start:
        """Where a step's coupling starts. Collective if ``candidates`` is given.

        Args:
            candidates: row ids ``(m,)`` of the columns; ``None`` for this rank's own rows.
            first: whether this is the run's first step, which has no last state.
        """
        g = self.potential.local if candidates is None else self.potential.rows(candidates)
        return Start(g, None if first else self.state)

    def lesson(self, plan: Plan, columns: Columns, candidates: Tensor | None, start: Start) -> Callable[[], None]:
        """What a batch's coupling teaches: called, it updates the potential. Columns without mass keep theirs.

        Collective if ranks keep the whole potential: they must have all of a step before any of them takes it.
        """
        assert start.g is not None
        rate = 1 - math.exp(-len(plan.solver.p) / (self.epochs * self.potential.total))
        correction = plan.epsilon * torch.log1p(rate * (plan.solver.column_ratio - 1))
        g = torch.where(columns.mass > 0, start.g - correction, start.g)
        whole = self.potential.gathered(g) if candidates is None and self.potential.whole is not None else None
        return partial(self._learn, g, whole, candidates, plan.state)

    def _learn(self, g: Tensor, whole: Tensor | None, candidates: Tensor | None, state: Tensor) -> None:
        if candidates is None:
            self.potential.local.copy_(g)
        else:
            self.potential.write(candidates, g)
        if whole is not None and self.potential.whole is not None:
            self.potential.whole.copy_(whole)
        if state.shape == self.state.shape:
            self.state.copy_(state)

    def tensors(self) -> dict[str, Tensor]:
        """Tensors to checkpoint."""
        return {"potential": self.potential.state(), "state": self.state}
