"""Entropic fused Gromov-Wasserstein: Sinkhorn on a linearised cost, alternating with the linearisation.

    min_T (1-λ)<M, T> + λ Σ (C1_ik - C2_jl)² T_ij T_kl - ε H(T),    T 1 = p,  Tᵀ 1 = q

(Vayer et al. 2020, eq. 3; Peyré et al. 2016, eq. 9; docs/mathematics.md, eq. 1). With cosine costs on unit features no
distance matrix is needed; see ``geometry.Cosine``. Inner problems are solved tightly, which Newton's steps make cheap:
the outer iteration then contracts fast, while with loose inner solutions it creeps.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from gfgw_prod.transport.checks import (
    checked_classes,
    checked_features,
    checked_marginal,
    checked_options,
    checked_start,
)
from gfgw_prod.transport.columns import Columns
from gfgw_prod.transport.coupling import COLD, Options, Start, Status
from gfgw_prod.transport.geometry import Cosine, Euclidean, Geometry
from gfgw_prod.transport.plan import Plan
from gfgw_prod.transport.sinkhorn import Sinkhorn

ROUNDING = 16  # machine epsilons; smaller relative changes of the state are rounding
LARGEST_RATE = 0.99  # of the outer iteration; the estimate of the state's error is meaningless above it
INNER_TOLERANCE = 1e-3  # of the first inner problem; its square for the second, and so on
FIRST_EPSILON = 0.1  # a cold start with a smaller ε begins with one about as large


def solve(
    x: Tensor, p: Tensor, columns: Columns, options: Options, row_labels: Tensor | None = None, start: Start = COLD
) -> Plan:
    """Couple rows ``x (n, d)`` of masses ``p (n,)`` with columns that may be spread over ranks. Collective.

    Inputs are not checked; ``fused_gromov_wasserstein`` checks them.
    """
    lam, epsilon = options.structure_weight, options.epsilon
    geometry: Geometry
    if options.geometry == "euclidean":
        geometry = Euclidean(x, columns, p, row_labels)
    else:
        geometry = Cosine(x, columns, p, row_labels, noise_term=options.noise_term)
    sinkhorn, outer = Sinkhorn(columns, p), _OuterIteration(options)
    # S, (d, d), and X W Yᵀ / ε, (n, m)
    if start.g is None and start.state is None:
        state, logits = geometry.cold_start(lam, epsilon)
    else:
        state = geometry.initial_state() if start.state is None else start.state
        logits = geometry.logits(state, lam, epsilon)
    if start.g is None:
        sinkhorn.start(None, halvings=max(math.ceil(math.log2(FIRST_EPSILON / epsilon)), 0))
    else:
        sinkhorn.start(start.g / epsilon)
    while True:
        error: Tensor | float = 0.0
        if options.dual_balance is not None:
            sinkhorn.run_once(logits, dual_balance=options.dual_balance)
        elif options.fixed_iterations:
            error = sinkhorn.run_fixed(logits, iterations=options.max_inner_iterations)
        else:
            error = sinkhorn.run(logits, tolerance=outer.inner_tolerance(), max_iterations=options.max_inner_iterations)
        last_state, state = state, geometry.state_of(sinkhorn)  # S ← Xᵀ T Y
        if outer.is_over(error, _relative_change(state, last_state)):
            break
        sinkhorn.start(sinkhorn.potentials()[1])
        logits = geometry.logits(state, lam, epsilon)
    status = Status(
        outer.count,
        sinkhorn.iterations,
        sinkhorn.hessians,
        sinkhorn.kernel_builds,
        error,
        outer.state_error,
        options.tolerance,
    )
    return Plan(sinkhorn, geometry, state, lam, epsilon, status)


class _OuterIteration:
    """When the outer iteration stops, and how tightly each inner problem is solved."""

    def __init__(self, options: Options):
        self.options = options
        self.count = 0
        self.state_error: Tensor | float = math.inf  # estimated relative distance of the state from its fixed point
        self._change = math.inf

    def inner_tolerance(self) -> float:
        """Tolerance of the next inner problem; each linearisation is about ``INNER_TOLERANCE`` times as far off."""
        options = self.options
        last = options.structure_weight == 0 or self.count + 1 >= options.max_outer_iterations
        return options.tolerance if last else max(options.tolerance, INNER_TOLERANCE ** (self.count + 1))

    def is_over(self, error: Tensor | float, change: Tensor) -> bool:
        """Count a solved inner problem, and say whether it was the last.

        Args:
            error: its L1 marginal error.
            change: of the state, relative. Changes shrink by a rate ``r``, so ``change r / (1 - r)`` is still to come.
        """
        self.count += 1
        options = self.options
        if options.structure_weight == 0 or options.dual_balance is not None:
            self.state_error = 0.0
            return True
        if options.fixed_iterations:
            self.state_error = change
            return self.count >= options.max_outer_iterations
        last, self._change = self._change, float(change)
        settled = self._change <= ROUNDING * torch.finfo(change.dtype).eps
        rate = min(self._change / last if last > 0 else 1.0, LARGEST_RATE) if self.count > 1 and not settled else 0.5
        self.state_error = self._change * rate / (1 - rate)
        converged = error <= options.tolerance and self.state_error <= options.tolerance
        return bool(converged) or settled or self.count >= options.max_outer_iterations


def _relative_change(state: Tensor, last: Tensor) -> Tensor:
    change: Tensor = torch.linalg.vector_norm(state - last) / torch.linalg.vector_norm(state).clamp_min(1e-30)
    return change


def fused_gromov_wasserstein(
    x: Tensor,
    y: Tensor,
    p: Tensor | None = None,
    q: Tensor | None = None,
    *,
    structure_weight: float,
    epsilon: float,
    geometry: Literal["cosine", "euclidean"] = "cosine",
    row_labels: Tensor | None = None,
    column_labels: Tensor | None = None,
    max_outer_iterations: int = 50,
    max_inner_iterations: int = 2000,
    tolerance: float = 1e-6,
    fixed_iterations: bool = False,
    start: Start = COLD,
) -> Plan:
    """Couple unit rows ``x (n, d)`` with unit rows ``y (N, d)`` by entropic fused Gromov-Wasserstein.

    Features in bfloat16 or float16 are converted to float32. No gradient flows through a plan.

    Args:
        p, q: marginals ``(n,)`` and ``(N,)``, each summing to 1; uniform by default.
        structure_weight: λ in [0, 1]; 0 is plain entropic optimal transport.
        epsilon: entropic regularisation in units of the cost, > 0.
        geometry: ``cosine`` is ``1 - <x, y>``, factored; ``euclidean`` is ``|x - y|``, by dense matrices.
        row_labels, column_labels: class ids ``(n,)`` and ``(N,)``; rows couple with columns of their class only. Each
            class must have the same mass in ``p`` as in ``q``.
        tolerance: stop when the L1 marginal error and the estimated relative error of the state are below it.
        max_outer_iterations: largest number of linearisations.
        max_inner_iterations: largest number of Sinkhorn iterations in each.
        fixed_iterations: run all ``max_outer_iterations`` of ``max_inner_iterations`` without a host read, for
            ``torch.compile`` and CUDA graphs. Only the shapes of inputs are then checked.
        start: where to start, by default from nothing.

    Raises:
        ValueError: for non-finite features, shapes that do not fit, marginals that do not sum to 1, classes without
            columns or of unequal mass, ε or λ out of range, unknown names.
    """
    options = Options(
        structure_weight, epsilon, geometry, max_outer_iterations, max_inner_iterations, tolerance, fixed_iterations
    )
    read = not fixed_iterations
    checked_options(options)
    x, y = checked_features(x, y, read_values=read)
    p = checked_marginal("p", p, x, read_values=read)
    q = checked_marginal("q", q, x.new_empty(len(y)), read_values=read)
    if row_labels is not None or column_labels is not None:
        q = checked_classes(p, q, row_labels, column_labels, read_values=read)
    checked_start(start, x, y, geometry, read_values=read)
    return solve(x, p, Columns(y, q, column_labels), options, row_labels, start)
