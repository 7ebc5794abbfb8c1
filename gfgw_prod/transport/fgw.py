"""Entropic fused Gromov-Wasserstein: Sinkhorn on a linearised cost, and the linearisation, in turn.

    min_T (1-λ)<M, T> + λ Σ (C1_ik - C2_jl)² T_ij T_kl - ε H(T),    T 1 = p,  Tᵀ 1 = q

(Vayer et al. 2020, eq. 3; Peyré et al. 2016, eq. 9). With cosine costs on unit features no distance matrix is needed:
see ``geometry.Cosine``. Inner problems are solved tightly, which Newton's steps make cheap: the outer iteration then
contracts fast, where one on loose couplings creeps.
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

FLOOR = 16  # machine epsilons: relative changes of the state below are rounding
SLOWEST = 0.99  # rate of the outer iteration beyond which what is left to go cannot be told
INNER_TOLERANCE = 5e-3  # of the first inner problem, its square of the second, and so on


def solve(
    x: Tensor, p: Tensor, columns: Columns, options: Options, row_labels: Tensor | None = None, start: Start = COLD
) -> Plan:
    """Couples rows ``x (n, d)`` of masses ``p`` with columns that may be spread over ranks. Collective.

    Inputs are taken as they are; ``fused_gromov_wasserstein`` checks them.
    """
    relaxed = options.marginal == "semi_relaxed"
    geometry: Geometry
    if options.geometry == "euclidean":
        geometry = Euclidean(x, columns, p, row_labels, relaxed=relaxed)
    else:
        geometry = Cosine(x, columns, p, row_labels, relaxed=relaxed, pull=options.pull)
    sinkhorn = Sinkhorn(columns, p)
    column_step = 0.0 if relaxed else options.column_step
    epsilon = max(options.anneal_from or 0.0, options.epsilon)
    state = geometry.initial() if start.state is None else start.state
    g = None if start.g is None or relaxed else start.g / epsilon
    loop, outer = _Linearisations(options), 0
    while True:
        outer += 1
        sinkhorn.start(g)
        logits = geometry.logits(state, options.structure_weight, epsilon)
        error: Tensor | float = 0.0
        if column_step is not None:
            sinkhorn.run_once(logits, balance=column_step)
        elif options.fixed_trips:
            error = sinkhorn.run_fixed(logits, iterations=options.max_inner_iterations)
        else:
            error = sinkhorn.run(logits, tolerance=loop.inner_tolerance(), max_iterations=options.max_inner_iterations)
        answer = geometry.respond(sinkhorn)
        if epsilon == options.epsilon and loop.is_over(error, _relative_change(answer, state)):
            break
        if column_step is None:
            g = sinkhorn.potentials()[1]
        if epsilon > options.epsilon:
            lower = max(epsilon / 2, options.epsilon)
            g, epsilon = None if g is None else g * (epsilon / lower), lower
        state = loop.damped(state, answer) if relaxed else answer
    status = Status(
        outer,
        sinkhorn.iterations,
        sinkhorn.hessians,
        sinkhorn.builds,
        error,
        loop.remaining,
        options.tolerance,
    )
    return Plan(sinkhorn, geometry, answer, options.structure_weight, options.epsilon, status)


class _Linearisations:
    """When the outer iteration is over, and how exact an inner problem has to be."""

    def __init__(self, options: Options):
        self.options = options
        self.count = 0
        self.remaining: Tensor | float = math.inf  # relative distance of the state from where it is going
        self._change, self._step = math.inf, 1.0

    def inner_tolerance(self) -> float:
        """The first linearisation is a guess, and later ones are better by about this factor each."""
        options = self.options
        last = options.structure_weight == 0 or self.count + 1 >= options.max_outer_iterations
        return options.tolerance if last else max(options.tolerance, INNER_TOLERANCE ** (self.count + 1))

    def is_over(self, error: Tensor | float, change: Tensor) -> bool:
        """Takes note of a solved problem. What is left to go is a geometric series at the rate of the last changes."""
        self.count += 1
        options = self.options
        if options.structure_weight == 0 or options.column_step is not None:
            self.remaining = 0.0
            return True
        if options.fixed_trips:
            self.remaining = change
            return self.count >= options.max_outer_iterations
        last, self._change = self._change, float(change)
        rate = self._change / last if last > 0 else 1.0
        if rate >= 1:  # a semi-relaxed plan may swing about its fixed point
            self._step /= 2
        settled = self._change <= FLOOR * torch.finfo(change.dtype).eps
        known = min(rate, SLOWEST) if self.count > 1 and not settled else 0.5
        self.remaining = self._change * known / (1 - known)
        done = error <= options.tolerance and self.remaining <= options.tolerance
        return bool(done) or settled or self.count >= options.max_outer_iterations

    def damped(self, state: Tensor, answer: Tensor) -> Tensor:
        """The next state of a map that need not contract."""
        return torch.lerp(state, answer, self._step)


def _relative_change(answer: Tensor, state: Tensor) -> Tensor:
    change: Tensor = torch.linalg.vector_norm(answer - state) / torch.linalg.vector_norm(answer).clamp_min(1e-30)
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
    marginal: Literal["balanced", "semi_relaxed"] = "balanced",
    row_labels: Tensor | None = None,
    column_labels: Tensor | None = None,
    max_outer_iterations: int = 50,
    max_inner_iterations: int = 2000,
    tolerance: float = 1e-6,
    anneal_from: float | None = None,
    fixed_trips: bool = False,
    start: Start = COLD,
) -> Plan:
    """Couples unit rows ``x (n, d)`` with unit rows ``y (N, d)`` by entropic fused Gromov-Wasserstein.

    Features in bfloat16 or float16 are computed with in float32. No gradient flows through a plan.

    Args:
        p, q: marginals ``(n,)`` and ``(N,)``, each summing to 1; uniform when omitted. Of a semi-relaxed plan ``q`` is
            the first guess and says which columns may have mass.
        structure_weight: λ in [0, 1]; 0 is plain entropic optimal transport.
        epsilon: entropic regularisation in units of the cost, > 0.
        geometry: ``cosine`` is ``1 - <x, y>``, factored; ``euclidean`` is ``|x - y|``, by dense matrices.
        marginal: ``semi_relaxed`` leaves the column marginal free.
        row_labels, column_labels: class ids ``(n,)`` and ``(N,)``; only rows and columns of one class may have mass.
            A balanced plan's classes must have the same mass in ``p`` as in ``q``.
        tolerance: stop when the L1 marginal error is below it and so is what the state has left to go, relative.
        max_outer_iterations: most linearisations at ``epsilon``; those of annealing come before.
        max_inner_iterations: most Sinkhorn iterations in each.
        anneal_from: a larger ε to begin with, halved at every linearisation.
        fixed_trips: make all ``max_outer_iterations`` of ``max_inner_iterations`` and look at no value on the way, as
            compilers and CUDA graphs want it. Inputs are then checked for shape alone.
        start: where to go on from; a semi-relaxed plan has no column potential and takes the state alone.

    Raises:
        ValueError: for non-finite features, shapes that do not fit, marginals without sum 1, classes of one side
            alone, ε or λ out of range, unknown names.
    """
    options = Options(
        structure_weight,
        epsilon,
        geometry,
        marginal,
        max_outer_iterations,
        max_inner_iterations,
        tolerance,
        anneal_from,
        fixed_trips,
    )
    look = not fixed_trips
    checked_options(options)
    x, y = checked_features(x, y, look=look)
    p, q = checked_marginal("p", p, x, look=look), checked_marginal("q", q, x.new_empty(len(y)), look=look)
    if row_labels is not None or column_labels is not None:
        q = checked_classes(p, q, row_labels, column_labels, balanced=marginal == "balanced", look=look)
    checked_start(start, x, y, geometry, relaxed=marginal == "semi_relaxed", look=look)
    return solve(x, p, Columns(y, q, column_labels), options, row_labels, start)
