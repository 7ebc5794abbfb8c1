"""Sinkhorn in the kernel domain over column blocks: two matrix-vector products an iteration, never out of range.

The kernel is ``K = exp(logits + g - M)`` with ``M`` the largest exponent of each row, and the plan is
``diag(p w) K diag(v)``: all its factors stay moderate. A scaling ``v`` that leaves a safe range is folded into the
potential ``g`` by an update in the log domain, and ``K`` is built anew (Schmitzer 2019, "Stabilized sparse scaling
algorithms", algorithm 2): nothing overflows however small ε is. Where the iterations are slow, Newton's step on the
rows' potential takes the place of Sinkhorn's, shortened where the dual objective falls along it; its Hessian is kept
until it is slow in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gfgw_prod.transport.columns import Columns, Logits
from gfgw_prod.transport.newton import RowHessian

# Scalings in [1/LARGEST, LARGEST] keep products with the kernel inside float32, far from its rounding.
LARGEST = 1e12
LARGEST_CHANGE = 1e5  # of a scaling in one iteration
SMALLEST_LOG = -50.0  # kernel entries below its exponential are 0: products with them are denormal, and 10x slower
RATIO_BITS = 45  # ratios of row sums, near 1
MASS_BITS = 40  # row sums of the kernel, in [1, N]
FOLD_EVERY = 8  # iterations between folds where nothing may be looked at
SLOW = 6  # iterations still to make at the present rate from which a Hessian is cheaper
SHORTEST = 0.1  # share of Newton's step below which Sinkhorn's is as good
# L1 errors below these are near what sums can tell; few Hessians are spent there.
FINE = {torch.float32: 1e-5, torch.float64: 1e-13}
FINE_HESSIANS = 3


class Sinkhorn:
    """Couplings of ``n`` rows of masses ``p`` with given columns. Keeps one ``(n, m)`` buffer, the kernel.

    ``iterations``, ``hessians`` and ``builds`` of the kernel count the work done.
    """

    def __init__(self, columns: Columns, p: Tensor):
        self.columns, self.p = columns, p
        self.iterations = self.hessians = self.builds = 0
        self._hessian: RowHessian | None = None
        self._empty = columns.mass <= 0
        self._w, self.column_ratio = torch.ones_like(p), torch.ones_like(columns.mass)
        self._spare = p.new_empty(0)
        self._kernel = [p.new_empty(len(p), block.stop - block.start) for block in columns.blocks]

    def start(self, g: Tensor | None) -> None:
        """Sets the column potential ``(m,)`` to go on from, zero when omitted."""
        g = torch.zeros_like(self.columns.mass) if g is None else g.to(self.columns.mass)
        self._g = g.masked_fill(self._empty, -torch.inf)

    def run(self, logits: Logits, *, tolerance: float, max_iterations: int) -> float:
        """Iterates until the L1 error of the row marginal is at most ``tolerance``; columns are then exact.

        Returns:
            The error reached; that of the column marginal, should the last iteration have ended with exact rows.
        """
        self._build(logits)
        stop = self.iterations + max_iterations
        base = fallback = self._w
        direction = torch.zeros_like(self.p)
        length, first_slope = 0.0, torch.zeros_like(self.p[0])  # the last step: w = base exp(length direction)
        last_error, patience = math.inf, FINE_HESSIANS
        while self.iterations < stop:
            ratio, v, unsafe = self._iterate()
            gradient = self.p * (1 - ratio)  # of the dual objective, by log w
            facts = torch.stack([gradient.abs().sum(), unsafe, gradient @ direction, first_slope])
            error, out_of_range, slope, slope_before = (float(fact) for fact in facts.tolist())
            too_long = length and (out_of_range or not slope >= -slope_before)
            if too_long and self.iterations < stop:
                self._hessian = None
                secant = 0.0 if out_of_range else slope_before / (slope_before - slope)
                length = length * max(secant, 1 / 4) if length > SHORTEST else 0.0
                self._w = base * (length * direction).exp() if length else fallback
                continue
            if out_of_range:
                self._update_in_log_domain(logits)
                self._build(logits)
                length, last_error = 0.0, math.inf
                continue
            self._v = v
            if error <= tolerance or self.iterations == stop:
                return error
            base, length = self._w, 0.0
            fallback = self._w = base / ratio
            if _is_slow(error, last_error, tolerance):
                patience -= error < FINE[self.p.dtype]
                if patience < 0:
                    self._w = base
                    return error
                self._hessian = self._build_hessian(base, ratio)
            if self._hessian is not None:
                direction, length = self._hessian.step(ratio), 1.0
                first_slope = gradient @ direction
                self._w = base * direction.exp()
            last_error = error
        parts = [(self.column_mass() - self.columns.mass)[block].abs().sum()[None] for block in self.columns.blocks]
        return float(self.columns.sum(parts, self.p.new_empty(1), RATIO_BITS))

    def run_fixed(self, logits: Logits, *, iterations: int) -> Tensor:
        """As ``run`` with a fixed number of iterations and no look at any value; returns the error, a scalar."""
        self._build(logits)
        ratio = torch.ones_like(self.p)
        for index in range(iterations):
            if index and index % FOLD_EVERY == 0:
                self._g = self._g + self._v.log()
                self._build(logits)
            elif index:
                self._w = self._w / ratio
            ratio, self._v, _ = self._iterate(clamp=True)
        return self._error(ratio)

    def run_once(self, logits: Logits, *, balance: float) -> None:
        """One column step of ``balance`` in [0, 1] from the start's ``g``, then exact rows.

        The step is that of a column marginal held by a KL penalty ρ, ``v = (q / c)^(ρ / (ρ + ε))`` (Chizat et al. 2018,
        "Scaling algorithms for unbalanced optimal transport problems"): 0 leaves columns free, 1 is Sinkhorn's.
        ``column_ratio`` keeps ``c / q``, what the columns had before the step over what they should have.
        """
        self._build(logits)
        self.iterations += 1
        ratio = (self._column_sums() / self.columns.mass).masked_fill_(self._empty, 1)
        self.column_ratio = ratio.clamp(1 / LARGEST, LARGEST)
        if balance:
            self._v = self.column_ratio**-balance
            parts = []
            for kernel, block in zip(self._kernel, self.columns.blocks, strict=True):
                parts.append((torch.mv(kernel, self._v[block]) * self._w).clamp_max(LARGEST_CHANGE))
            self._w = self._w / self.columns.sum(parts, self.p, RATIO_BITS).masked_fill(self._blind, 1)

    def potentials(self) -> tuple[Tensor, Tensor]:
        """``f - log p``, ``(n,)``, finite also for rows without mass, and this rank's ``g (m,)``."""
        return self._w.log() - self._shift, self._g + self._v.log()

    def conditional_blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks with ``T_ij / p_i``, ``(n, b)``, each valid until the next."""
        for kernel, block in zip(self._kernel, self.columns.blocks, strict=True):
            weights = torch.mul(kernel, self._v[block], out=self._scratch(kernel.shape))
            yield block, weights.mul_(self._w[:, None])

    def times(self, values: Callable[[slice], Tensor], width: int) -> Tensor:
        """``T values / p``, ``(n, width)``, over all columns, for entries of at most 1000 in size. Collective."""
        parts = []
        for kernel, block in zip(self._kernel, self.columns.blocks, strict=True):
            y = values(block)
            parts.append(kernel @ torch.mul(self._v[block, None], y, out=self._scratch(y.shape)))
        return self.columns.sum(parts, self.p.new_empty(len(self.p), width), RATIO_BITS, self._w[:, None])

    def column_mass(self) -> Tensor:
        """``Tᵀ 1`` of this rank's columns, ``(m,)``."""
        return self._column_sums() * self._v

    def _build(self, logits: Logits) -> None:
        """Builds the kernel at the present ``g``: a half-iteration in the log domain, exact for any ``g``."""
        largest, sums = [], []
        for kernel, block in zip(self._kernel, self.columns.blocks, strict=True):
            logits.into(block, kernel)
            largest.append(kernel.add_(self._g[block]).amax(dim=1))
        shift = self.columns.max(largest, self.p)
        self._shift = shift.masked_fill(shift == -torch.inf, 0)
        for kernel in self._kernel:
            torch.threshold_(kernel.sub_(self._shift[:, None]), SMALLEST_LOG, -torch.inf).exp_()
            sums.append(kernel.sum(dim=1))
        mass = self.columns.sum(sums, self.p, MASS_BITS)
        self._blind = mass == 0
        self._w = mass.masked_fill(self._blind, 1).reciprocal()
        self._v = torch.ones_like(self.columns.mass)
        self.builds += 1

    def _column_sums(self) -> Tensor:
        u = self.p * self._w
        sums = [torch.mv(kernel.T, u) for kernel in self._kernel]
        return torch.cat(sums) if sums else torch.zeros_like(self.columns.mass)

    def _iterate(self, *, clamp: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The columns' update, kept in range if so wished, and what it does to the rows.

        Returns:
            Row sums of the plan over ``p``, ``(n,)``; the new ``v``; and whether the scalings are out of range.
        """
        self.iterations += 1
        mass = self.columns.mass
        v = (mass / self._column_sums()).masked_fill_(self._empty, 1)
        if clamp:
            v = torch.minimum(torch.maximum(v, self._v / LARGEST_CHANGE), self._v * LARGEST_CHANGE)
            v = v.clamp(1 / LARGEST, LARGEST)
        parts = []
        for index, (kernel, block) in enumerate(zip(self._kernel, self.columns.blocks, strict=True)):
            rows = v.new_zeros(len(self.p) + 1)
            torch.mul(torch.mv(kernel, v[block]), self._w, out=rows[:-1]).clamp_max_(LARGEST_CHANGE)
            if index == 0:
                (least, most), growth = v.aminmax(), (v / self._v).amax()
                rows[-1] = ~((least >= 1 / LARGEST) & (most <= LARGEST) & (growth <= LARGEST_CHANGE))
            parts.append(rows)
        total = self.columns.sum(parts, self.p.new_empty(len(self.p) + 1), RATIO_BITS)
        ratio = total[:-1].masked_fill(self._blind, 1)
        return ratio, v, total[-1] + (ratio < 1 / LARGEST_CHANGE).any()

    def _build_hessian(self, w: Tensor, ratio: Tensor) -> RowHessian:
        self.hessians += 1
        return RowHessian(self.columns, self._kernel, self._scratch, self.p, w, self._v, ratio)

    def _scratch(self, shape: torch.Size) -> Tensor:
        """Room for one block's intermediate result: fresh memory would cost more than the arithmetic."""
        if self._spare.numel() < shape.numel():
            self._spare = self.p.new_empty(shape.numel())
        return self._spare[: shape.numel()].view(shape)

    def _error(self, ratio: Tensor) -> Tensor:
        return self.p @ (ratio - 1).abs()

    def _update_in_log_domain(self, logits: Logits) -> None:
        """The columns' update ``g = log q - logsumexp(logits + f)`` at the present ``f``."""
        f = self.p.log() + self._w.log() - self._shift
        g = []
        for kernel, block in zip(self._kernel, self.columns.blocks, strict=True):
            logits.into(block, kernel)
            g.append(self.columns.mass[block].log() - torch.logsumexp(kernel.add_(f[:, None]), dim=0))
        if g:
            self._g = torch.cat(g).masked_fill_(self._empty, -torch.inf)


def _is_slow(error: float, last_error: float, tolerance: float) -> bool:
    """Whether the error, at its present rate, needs more than ``SLOW`` iterations to fall to the tolerance."""
    if not 0 < error < 1:
        return False
    rate = min(error / last_error, 0.999)
    return rate > 0 and math.log(tolerance / error) / math.log(rate) > SLOW
