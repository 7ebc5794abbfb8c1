"""Entropic fused Gromov-Wasserstein for unit features, in the bilinear form: a d x d state, no distance matrices.

With cosine costs ``M = 1 - XYᵀ``, ``C1 = 1 - XXᵀ``, ``C2 = 1 - YYᵀ`` the problem is

    min_T (1-λ)<M, T> + λ Σ (C1_ik - C2_jl)² T_ij T_kl - ε H(T),    T 1 = p,  Tᵀ 1 = q

(Vayer et al. 2020, eq. 3; Peyré et al. 2016, eq. 9). Linearised at ``T``, everything that depends on the row alone or
the column alone is absorbed by the potentials; what is left is ``-X W Yᵀ`` with ``W = (1-λ) I + 4λ S``, ``S = Xᵀ T Y``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gfgw_prod.transport.sinkhorn import Potentials, sinkhorn


@dataclass(frozen=True)
class Status:
    """How the solver ended. ``marginal_error`` is the L1 error of the row marginal (columns are exact)."""

    converged: bool
    outer_iterations: int
    inner_iterations: int
    marginal_error: float


@dataclass(frozen=True)
class Plan:
    """A coupling ``T = exp(f + X W Yᵀ / ε + g)`` of ``n`` rows with ``N`` columns, kept in factored form."""

    x: Tensor  # (n, d) unit rows
    y: Tensor  # (N, d) unit rows
    p: Tensor  # (n,)
    q: Tensor  # (N,)
    weight: Tensor  # W, (d, d)
    state: Tensor  # S = Xᵀ T Y, (d, d)
    potentials: Potentials
    structure_weight: float
    epsilon: float
    status: Status
    forbidden: Tensor | None = None  # (n, N), pairs of different classes

    def logits(self) -> Tensor:
        """``X W Yᵀ / ε + g``, ``(n, N)``: a row's log-probabilities over targets up to a constant."""
        logits = (self.x @ self.weight / self.epsilon) @ self.y.T + self.potentials.g
        return logits if self.forbidden is None else logits.masked_fill(self.forbidden, -torch.inf)

    def conditional(self) -> Tensor:
        """``T_ij / p_i``, each row a distribution over columns, ``(n, N)``."""
        return torch.softmax(self.logits(), dim=1)

    def dense(self) -> Tensor:
        """The coupling matrix, ``(n, N)``."""
        return torch.exp(self.logits() + self.potentials.f[:, None])

    def argmax(self) -> Tensor:
        """Each row's heaviest column, ``(n,)``."""
        return self.logits().argmax(dim=1)

    def sample(self, uniforms: Tensor) -> Tensor:
        """A column per row drawn from ``T_ij / p_i``, by inverting its distribution at ``uniforms`` ``(n,)``."""
        cumulative = self.conditional().double().cumsum(dim=1)
        thresholds = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
        columns = torch.searchsorted(cumulative, thresholds, right=True)[:, 0]
        return columns.clamp_max(len(self.y) - 1)

    def objective(self) -> float:
        """``(1-λ)<M, T> + λ Σ (C1_ik - C2_jl)² T_ij T_kl - ε H(T)`` from d x d statistics alone."""
        lam, s = self.structure_weight, self.state.double()
        x, y, p, q = (tensor.double() for tensor in (self.x, self.y, self.p, self.q))
        mean_x, mean_y = x.T @ p, y.T @ q
        linear = 1 - s.trace()
        cost_x = 1 - 2 * mean_x.square().sum() + (x.T @ (p[:, None] * x)).square().sum()
        cost_y = 1 - 2 * mean_y.square().sum() + (y.T @ (q[:, None] * y)).square().sum()
        cross = 1 - mean_x.square().sum() - mean_y.square().sum() + s.square().sum()
        f, g = self.potentials.f.double(), self.potentials.g.double()
        # Σ T log T = <p, f> + <q, g> + <W, S> / ε; rows and columns without mass add nothing.
        negative_entropy = (
            (p * f.nan_to_num(neginf=0.0)).sum()
            + (q * g.nan_to_num(neginf=0.0)).sum()
            + (self.weight.double() * s).sum() / self.epsilon
        )
        structure = cost_x + cost_y - 2 * cross
        return float((1 - lam) * linear + lam * structure + self.epsilon * negative_entropy)


def fused_gromov_wasserstein(
    x: Tensor,
    y: Tensor,
    p: Tensor | None = None,
    q: Tensor | None = None,
    *,
    structure_weight: float,
    epsilon: float,
    max_outer_iterations: int = 50,
    max_inner_iterations: int = 2000,
    tolerance: float = 1e-6,
    start: Potentials | None = None,
    forbidden: Tensor | None = None,
) -> Plan:
    """Couples unit rows ``x (n, d)`` with unit rows ``y (N, d)`` by entropic fused Gromov-Wasserstein.

    Args:
        p, q: marginals ``(n,)`` and ``(N,)``, each summing to 1; uniform when omitted.
        structure_weight: λ in [0, 1]; 0 is plain entropic optimal transport on cosine cost.
        epsilon: entropic regularisation in units of the cost, > 0.
        tolerance: stop when the L1 marginal error is below it and so is the relative change of ``S``.
        start: potentials to go on from.
        forbidden: ``(n, N)`` booleans, pairs that must have no mass; the marginals must allow for it.

    Raises:
        ValueError: for non-finite features, shapes that do not fit, marginals without sum 1, ε or λ out of range.
    """
    p, q = _checked(x, y, p, q, structure_weight, epsilon)
    log_p, log_q = p.log(), q.log()
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    state = torch.outer(x.T @ p, y.T @ q)  # S of the independent coupling p qᵀ
    potentials, inner, error, change = start, 0, float("inf"), float("inf")
    outer = 0
    while True:
        weight = (1 - structure_weight) * identity + 4 * structure_weight * state
        logits = (x @ weight / epsilon) @ y.T
        if forbidden is not None:
            logits = logits.masked_fill(forbidden, -torch.inf)
        potentials, iterations, error = sinkhorn(
            logits, log_p, log_q, potentials, tolerance=tolerance, max_iterations=max_inner_iterations
        )
        outer, inner = outer + 1, inner + iterations
        plan = torch.exp(logits + potentials.f[:, None] + potentials.g[None, :])
        new_state = x.T @ (plan @ y)
        change = float((new_state - state).norm() / new_state.norm().clamp_min(1e-30))
        state = new_state
        if structure_weight == 0 or change <= tolerance or outer >= max_outer_iterations:
            break
    converged = error <= tolerance and (structure_weight == 0 or change <= tolerance)
    status = Status(converged, outer, inner, error)
    return Plan(x, y, p, q, weight, state, potentials, structure_weight, epsilon, status, forbidden)


def _checked(
    x: Tensor, y: Tensor, p: Tensor | None, q: Tensor | None, structure_weight: float, epsilon: float
) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(f"x and y must be (n, d) and (N, d), not {tuple(x.shape)} and {tuple(y.shape)}")
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise ValueError("x and y must be finite")
    if not 0 <= structure_weight <= 1:
        raise ValueError(f"structure_weight must lie in [0, 1], not {structure_weight}")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be > 0, not {epsilon}")
    marginals = []
    for name, given, rows in (("p", p, x), ("q", q, y)):
        marginal = rows.new_full((len(rows),), 1 / len(rows)) if given is None else given.to(rows)
        sums_to_one = abs(float(marginal.sum()) - 1) <= 1e-4  # false for NaN
        if marginal.shape != (len(rows),) or bool((marginal < 0).any()) or not sums_to_one:
            raise ValueError(f"{name} must be ({len(rows)},), non-negative and sum to 1")
        marginals.append(marginal)
    return marginals[0], marginals[1]
