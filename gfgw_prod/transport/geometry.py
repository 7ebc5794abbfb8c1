"""What a plan does to the cost: the linearisation of fused Gromov-Wasserstein, factored or dense.

The linearised cost at ``T`` is ``(1-λ) M + 2λ (constC - 2 C1 T C2)``. Terms of the row alone are absorbed by the
potentials, and so are terms of the column alone while the column marginal is fixed. A semi-relaxed plan has no column
potential: its column term, which depends on the plan's own column mass ``c``, is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from gfgw_prod.transport.columns import Columns, Logits
from gfgw_prod.transport.sinkhorn import RATIO_BITS, Sinkhorn

if TYPE_CHECKING:
    from gfgw_prod.transport.plan import Plan


class Geometry(Protocol):
    """Distances of rows and columns, and how the cost of a coupling follows from the coupling."""

    def initial(self) -> Tensor:
        """The state of the independent coupling ``p qᵀ``."""
        ...

    def logits(self, state: Tensor, structure_weight: float, epsilon: float) -> Logits:
        """Minus the linearised cost over ε."""
        ...

    def respond(self, plan: Sinkhorn) -> Tensor:
        """The state of a coupling. Collective."""
        ...

    def costs(self, state: Tensor, plan: Plan) -> tuple[float, float]:
        """``<M, T>`` and ``Σ (C1_ik - C2_jl)² T_ij T_kl`` of a coupling and its state. Collective."""
        ...


class Cosine:
    """``1 - <·,·>`` on unit rows. The state is ``S = Xᵀ T Y``, ``(d, d)``, atop ``Yᵀ diag(c) Y`` when semi-relaxed.

    No distance matrix exists: the logits are ``X W Yᵀ / ε`` with ``W = (1-λ) I + 4λ S``; the column term of a
    semi-relaxed plan is ``-2λ y_jᵀ (Yᵀ diag(c) Y) y_j / ε``.

    Args:
        pull: rows ``(n, d)`` whose products with the columns are taken off the cost, whatever λ is.
    """

    def __init__(
        self,
        x: Tensor,
        columns: Columns,
        p: Tensor,
        row_labels: Tensor | None,
        *,
        relaxed: bool,
        pull: Tensor | None = None,
    ):
        self.x, self.columns, self.p, self.row_labels, self.relaxed = x, columns, p, row_labels, relaxed
        self.pull = pull

    def _features(self, block: slice) -> Tensor:
        return self.columns.features[block].to(self.x.dtype)

    def _moment(self, mass: Tensor) -> Tensor:
        """``Yᵀ diag(mass) Y``, ``(d, d)``."""
        parts = [self._features(block).T @ (mass[block, None] * self._features(block)) for block in self.columns.blocks]
        d = self.x.shape[1]
        return self.columns.sum(parts, self.x.new_empty(d, d), RATIO_BITS)

    def _mean(self, mass: Tensor) -> Tensor:
        parts = [mass[block] @ self._features(block) for block in self.columns.blocks]
        return self.columns.sum(parts, self.x[0], RATIO_BITS)

    def initial(self) -> Tensor:
        state = torch.outer(self.x.T @ self.p, self._mean(self.columns.mass))
        return torch.cat([state, self._moment(self.columns.mass)]) if self.relaxed else state

    def logits(self, state: Tensor, structure_weight: float, epsilon: float) -> Logits:
        d = self.x.shape[1]
        weight = state[:d] * (4 * structure_weight / epsilon)
        weight.diagonal().add_((1 - structure_weight) / epsilon)
        queries = self.x @ weight  # (n, d)
        if self.pull is not None:
            queries += self.pull / epsilon

        def write(block: slice, out: Tensor) -> None:
            y = self._features(block)
            torch.mm(queries, y.T, out=out)
            if self.relaxed:
                out -= ((y @ state[d:]) * y).sum(dim=1) * (2 * structure_weight / epsilon)

        return Logits(self.columns, self.row_labels, write)

    def respond(self, plan: Sinkhorn) -> Tensor:
        barycentres = plan.times(self._features, self.x.shape[1])
        state = self.x.T @ (self.p[:, None] * barycentres)
        return torch.cat([state, self._moment(plan.column_mass())]) if self.relaxed else state

    def costs(self, state: Tensor, plan: Plan) -> tuple[float, float]:
        x, p, mass = self.x.double(), self.p.double(), plan.column_mass()
        s, mean_x, mean_y = state[: x.shape[1]].double(), x.T @ p, self._mean(mass).double()
        squares_x = 1 - 2 * mean_x.square().sum() + (x.T @ (p[:, None] * x)).square().sum()
        squares_y = 1 - 2 * mean_y.square().sum() + self._moment(mass).double().square().sum()
        cross = 1 - mean_x.square().sum() - mean_y.square().sum() + s.square().sum()
        return float(1 - s.trace()), float(squares_x + squares_y - 2 * cross)


class Euclidean:
    """``|x_i - y_j|`` by distance matrices. The state is ``C1 T C2``, ``(n, N)``, atop ``C2² c`` when semi-relaxed."""

    def __init__(self, x: Tensor, columns: Columns, p: Tensor, row_labels: Tensor | None, *, relaxed: bool):
        self.x, self.columns, self.p, self.row_labels, self.relaxed = x, columns, p, row_labels, relaxed
        y = columns.features.to(x.dtype)
        self.cost, self.cost_x, self.cost_y = torch.cdist(x, y), _distances(x), _distances(y)

    def _state(self, cross: Tensor, column_mass: Tensor) -> Tensor:
        return torch.cat([cross, (self.cost_y.square() @ column_mass)[None, :]]) if self.relaxed else cross

    def initial(self) -> Tensor:
        q = self.columns.mass
        return self._state(torch.outer(self.cost_x @ self.p, self.cost_y @ q), q)

    def logits(self, state: Tensor, structure_weight: float, epsilon: float) -> Logits:
        n = len(self.x)
        cost = (1 - structure_weight) * self.cost - 4 * structure_weight * state[:n]
        if self.relaxed:
            cost += 2 * structure_weight * state[n:]
        return Logits(self.columns, self.row_labels, lambda block, out: torch.div(cost[:, block], -epsilon, out=out))

    def respond(self, plan: Sinkhorn) -> Tensor:
        seen = plan.times(lambda block: self.cost_y[block], len(self.cost_y))
        return self._state(self.cost_x @ (self.p[:, None] * seen), plan.column_mass())

    def costs(self, state: Tensor, plan: Plan) -> tuple[float, float]:
        matrix, p, mass = plan.dense().double(), self.p.double(), plan.column_mass().double()
        squares_x = p @ (self.cost_x.double().square() @ p)
        squares_y = mass @ (self.cost_y.double().square() @ mass)
        cross = (state[: len(self.x)].double() * matrix).sum()
        return float((self.cost.double() * matrix).sum()), float(squares_x + squares_y - 2 * cross)


def _distances(points: Tensor) -> Tensor:
    """``(k, d)`` -> ``(k, k)``; a point's distance to itself is 0, not the rounding of a product."""
    return torch.cdist(points, points).fill_diagonal_(0)
