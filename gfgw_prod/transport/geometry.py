"""Costs of a coupling and their linearisation, factored (cosine) or dense (Euclidean).

The linearised cost at ``T`` is ``(1-λ) M + 2λ (c(T) - 2 C1 T C2)`` (docs/mathematics.md, eq. 2). Both marginals are
fixed, so the potentials absorb every term that depends on the row alone or on the column alone, ``c(T)`` among them.
A geometry's state is the part of a coupling that the linearised cost depends on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gfgw_prod.transport.columns import Columns, Logits
from gfgw_prod.transport.sinkhorn import RATIO_BITS, Sinkhorn


class Cosine:
    """``1 - <·,·>`` on unit rows, without a distance matrix. The state is ``S = Xᵀ T Y``, ``(d, d)`` (eq. 4).

    Args:
        noise_term: rows ``(n, d)``; lowers the cost of pair ``i, j`` by ``<noise_term_i, y_j>`` (eq. 7).
    """

    def __init__(
        self, x: Tensor, columns: Columns, p: Tensor, row_labels: Tensor | None, *, noise_term: Tensor | None = None
    ):
        self.x, self.columns, self.p, self.row_labels, self.noise_term = x, columns, p, row_labels, noise_term

    def initial_state(self) -> Tensor:
        """The state of the independent coupling ``p qᵀ``. Collective."""
        return torch.outer(self.x.T @ self.p, self._mean(self.columns.mass))

    def logits(self, state: Tensor, structure_weight: float, epsilon: float) -> Logits:
        """``X W Yᵀ / ε`` with ``W = (1-λ) I + 4λ S`` (eq. 3)."""
        weight = state * (4 * structure_weight / epsilon)  # W / ε, (d, d)
        weight.diagonal().add_((1 - structure_weight) / epsilon)
        return self._logits_of(self.x @ weight, epsilon)

    def cold_start(self, structure_weight: float, epsilon: float) -> tuple[Tensor, Logits]:
        """``initial_state`` and its logits, without a product of matrices, as the state is of rank one. Collective."""
        mean_x, mean_y = self.x.T @ self.p, self._mean(self.columns.mass)
        linear, structure = (1 - structure_weight) / epsilon, 4 * structure_weight / epsilon
        queries = torch.addr(self.x, self.x @ mean_x, mean_y, beta=linear, alpha=structure)
        return torch.outer(mean_x, mean_y), self._logits_of(queries, epsilon)

    def _logits_of(self, queries: Tensor, epsilon: float) -> Logits:
        """``queries Yᵀ`` for queries ``(n, d)``, with the noise term."""
        if self.noise_term is not None:
            queries += self.noise_term / epsilon
        return Logits(
            self.columns, self.row_labels, lambda block, out: torch.mm(queries, self._features(block).T, out=out)
        )

    def state_of(self, coupling: Sinkhorn) -> Tensor:
        """The state of a coupling. Collective."""
        barycentres = coupling.conditional_matmul(self._features, self.x.shape[1])  # T Y / p, (n, d)
        return self.x.T @ (self.p[:, None] * barycentres)

    def costs(self, state: Tensor, coupling: Sinkhorn) -> tuple[float, float]:
        """``<M, T>`` and ``Σ (C1_ik - C2_jl)² T_ij T_kl`` of a coupling and its state. Collective."""
        x, p, mass = self.x.double(), self.p.double(), coupling.column_mass()
        s, mean_x, mean_y = state.double(), x.T @ p, self._mean(mass).double()
        # Σ C1² p p, Σ C2² q q and Σ C1 C2 T T, each with 1 - <·,·> multiplied out.
        squares_x = 1 - 2 * mean_x.square().sum() + (x.T @ (p[:, None] * x)).square().sum()
        squares_y = 1 - 2 * mean_y.square().sum() + self._moment(mass).double().square().sum()
        cross = 1 - mean_x.square().sum() - mean_y.square().sum() + s.square().sum()
        return float(1 - s.trace()), float(squares_x + squares_y - 2 * cross)

    def _features(self, block: slice) -> Tensor:
        return self.columns.features[block].to(self.x.dtype)

    def _mean(self, mass: Tensor) -> Tensor:
        """``Yᵀ mass``, ``(d,)``."""
        parts = [torch.mv(self._features(block).T, mass[block]) for block in self.columns.blocks]
        return self.columns.sum(parts, self.x[0], RATIO_BITS)

    def _moment(self, mass: Tensor) -> Tensor:
        """``Yᵀ diag(mass) Y``, ``(d, d)``."""
        parts = [self._features(block).T @ (mass[block, None] * self._features(block)) for block in self.columns.blocks]
        d = self.x.shape[1]
        return self.columns.sum(parts, self.x.new_empty(d, d), RATIO_BITS)


class Euclidean:
    """``|x_i - y_j|``, by dense distance matrices, as ``Cosine``. The state is ``C1 T C2``, ``(n, N)``."""

    def __init__(self, x: Tensor, columns: Columns, p: Tensor, row_labels: Tensor | None):
        self.columns, self.p, self.row_labels = columns, p, row_labels
        y = columns.features.to(x.dtype)
        self.cost, self.cost_x, self.cost_y = torch.cdist(x, y), _distances(x), _distances(y)

    def initial_state(self) -> Tensor:
        return torch.outer(self.cost_x @ self.p, self.cost_y @ self.columns.mass)

    def logits(self, state: Tensor, structure_weight: float, epsilon: float) -> Logits:
        cost = (1 - structure_weight) * self.cost - 4 * structure_weight * state  # (n, N)
        return Logits(self.columns, self.row_labels, lambda block, out: torch.div(cost[:, block], -epsilon, out=out))

    def cold_start(self, structure_weight: float, epsilon: float) -> tuple[Tensor, Logits]:
        state = self.initial_state()
        return state, self.logits(state, structure_weight, epsilon)

    def state_of(self, coupling: Sinkhorn) -> Tensor:
        seen = coupling.conditional_matmul(lambda block: self.cost_y[block], len(self.cost_y))  # T C2 / p, (n, N)
        return self.cost_x @ (self.p[:, None] * seen)

    def costs(self, state: Tensor, coupling: Sinkhorn) -> tuple[float, float]:
        matrix = (coupling.conditional() * self.p[:, None]).double()
        p, mass = self.p.double(), coupling.column_mass().double()
        squares_x = p @ (self.cost_x.double().square() @ p)
        squares_y = mass @ (self.cost_y.double().square() @ mass)
        cross = (state.double() * matrix).sum()
        return float((self.cost.double() * matrix).sum()), float(squares_x + squares_y - 2 * cross)


Geometry = Cosine | Euclidean


def _distances(points: Tensor) -> Tensor:
    """``(k, d)`` -> ``(k, k)``; the diagonal is exactly 0, which ``cdist`` does not guarantee."""
    return torch.cdist(points, points).fill_diagonal_(0)
