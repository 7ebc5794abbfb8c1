"""Duals that live from step to step: the coupling of the generator's whole distribution with the whole data set.

In semi-discrete optimal transport only the columns' potential ``g`` is unknown; rows, however many, follow from it one
by one. What a batch says about it is noisy, so its correction is averaged (Mensch and Peyré 2020, "Online Sinkhorn"):

    exp(-g_j / ε)  ←  (1 - η) exp(-g_j / ε) + η exp(-g_j / ε) c_j / q_j

with ``c = Tᵀ 1`` the mass that a batch gives column ``j`` under ``g``, and ``η = 1 - exp(-rows / (epochs N))``. The
batch's own coupling goes most of the way to its own marginal (``Sinkhorn.run_once``): where the averaged potential
alone chooses targets, neighbours in a batch crowd on the columns that are due, and the generator blurs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.distributed.world import World
from gfgw_prod.transport.columns import Columns
from gfgw_prod.transport.coupling import Start
from gfgw_prod.transport.plan import Plan


class PersistentDual:
    """The potential of every row of the bank, in units of the cost, by global row id; and the last state ``S``."""

    def __init__(self, total: int, dim: int, epochs: float, world: World):
        self.epochs = epochs
        self.potential = RowTable(total, (), world)
        self.state = torch.zeros(dim, dim, device=world.device)

    def start(self, candidates: Tensor | None, *, first: bool) -> Start:
        """Where a step's coupling begins. Collective if ``candidates`` ``(m,)`` name rows; None is this rank's own.

        Args:
            first: at a run's first step there is no last state yet.
        """
        g = self.potential.local if candidates is None else self.potential.rows(candidates)
        return Start(g, None if first else self.state)

    def learn(self, plan: Plan, columns: Columns, candidates: Tensor | None, start: Start) -> None:
        """Corrects the potential by what a batch found; columns that it could not reach stay as they are."""
        assert start.g is not None
        rate = 1 - math.exp(-len(plan.solver.p) / (self.epochs * self.potential.total))
        correction = plan.epsilon * torch.log1p(rate * (plan.solver.column_ratio - 1))
        g = torch.where(columns.mass > 0, start.g - correction, start.g)
        if candidates is None:
            self.potential.local.copy_(g)
        else:
            self.potential.write(candidates, g)
        if plan.state.shape == self.state.shape:
            self.state.copy_(plan.state)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {"potential": self.potential.state(), "state": self.state}
