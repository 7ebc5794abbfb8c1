"""Sinkhorn's iteration in the kernel domain, over blocks of columns: two matrix-vector products an iteration.

The kernel is ``K = exp(logits + g - shift)`` with ``shift`` the largest exponent of each row, and the plan is
``T = diag(p w) K diag(v)``: all factors stay moderate (docs/mathematics.md, eq. 5). When a scaling leaves the safe
range, an update in the log domain folds the scalings into the potential ``g`` and ``K`` is built again (Schmitzer 2019,
"Stabilized sparse scaling algorithms", algorithm 2), so nothing overflows however small ε is.

Where Sinkhorn converges slowly, Newton's step on the rows' potential (eq. 6) replaces it. A Hessian costs as much as 20
iterations, so one serves until its steps are slow in turn. Without a start, ε is first larger and is halved in steps
(ε-scaling, ibid. section 3): an elementwise square of the scaled kernel halves ε, without a product with the features.
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
LARGEST_CHANGE = 1e5  # of a row's scaling in one iteration
LARGEST_ERROR = 2.5  # with exact columns an L1 error is at most 2; a larger one comes from an overflow
SMALLEST_LOG = -50.0  # smaller exponents give 0: products of denormal numbers would be 10x slower
RATIO_BITS = 45  # fixed-point bits of row sums over p, which are near 1
MASS_BITS = 40  # fixed-point bits of row sums of the kernel, which lie in [1/N, N]
HALVING_ITERATIONS = 4  # Sinkhorn iterations before ε is halved
FOLD_EVERY = 8  # iterations between folds of the scalings into g, where the host may not read whether one is due
HESSIAN_EVERY = 2  # iterations between Hessians, where the host may not read whether one is due
SLOW = 12  # more remaining iterations than this cost more than a Hessian
FAR = 0.03  # at larger L1 errors a Hessian serves once: it changes too much within a step
# L1 errors below these are close to rounding; only FINE_HESSIANS Hessians are spent there.
FINE = {torch.float32: 1e-5, torch.float64: 1e-13}
FINE_HESSIANS = 3
ALIGNMENT = 16  # numbers; vectors of a CPU take 64 bytes


class Sinkhorn:
    """Couplings of ``n`` rows of masses ``p (n,)`` with given columns. Keeps one ``(n, m)`` buffer, the kernel.

    ``iterations``, ``hessians`` and ``kernel_builds`` count the work done.
    """

    def __init__(self, columns: Columns, p: Tensor):
        self.columns, self.p = columns, p
        self.iterations = self.hessians = self.kernel_builds = 0
        self._hessian: RowHessian | None = None
        self._empty = columns.mass <= 0  # (m,) columns without mass
        self._roots = p.sqrt(), columns.mass.sqrt()
        self._halvings = 0
        self._w, self.column_ratio = torch.ones_like(p), torch.ones_like(columns.mass)
        # One piece of memory: where an allocator gives large pieces back to the system, each costs page faults.
        sizes = [block.stop - block.start for block in columns.blocks]
        kernels = -(-len(p) * sum(sizes) // ALIGNMENT) * ALIGNMENT
        memory = p.new_empty(kernels + max(sizes, default=0) * max(len(p), columns.features.shape[1]))
        self._buffer = memory[kernels:]
        pieces = memory[: len(p) * sum(sizes)].split([len(p) * size for size in sizes])
        self._kernel = [piece.view(len(p), -1) for piece in pieces]  # K, (n, b) each

    def start(self, g: Tensor | None, halvings: int = 0) -> None:
        """Set where the next run starts.

        Args:
            g: column potential ``(m,)`` in units of the logits; zero by default.
            halvings: how often ε is halved on the way to its value, which the logits have.
        """
        g = torch.zeros_like(self.columns.mass) if g is None else g.to(self.columns.mass)
        self._g = g.masked_fill(self._empty, -torch.inf)
        self._halvings = halvings

    def run(self, logits: Logits, *, tolerance: float, max_iterations: int) -> float:
        """Iterate until the L1 error of the row marginal is at most ``tolerance``; the columns are then exact.

        Returns:
            The error reached; that of the column marginal if the last iteration left the rows exact.
        """
        stop = self.iterations + max_iterations
        self._first_kernel(logits, max_iterations)
        base, last_error, hessians_left = self._w, math.inf, FINE_HESSIANS
        while self.iterations < stop:
            ratio, self._v = self._iterate()  # r, (n,), and v, (m,)
            gradient = self._gradient(ratio)
            error = float(torch.linalg.vector_norm(gradient, 1))  # the host reads once an iteration
            overflow = not error <= LARGEST_ERROR  # also a NaN
            if overflow or (error <= tolerance and self._is_out_of_range()):
                self._w = base if overflow else self._w
                self._update_in_log_domain(logits)
                self._build_kernel(logits)
                base, last_error = self._w, math.inf
                continue
            if error <= tolerance or self.iterations == stop:
                return error
            if _is_slow(error, last_error, tolerance):
                hessians_left -= error < FINE[self.p.dtype]
                if hessians_left < 0:
                    return error
                self._hessian = self._build_hessian(ratio)
            base, last_error = self._w, error
            self._w = base / ratio if self._hessian is None else base * self._hessian.step(gradient).exp()
        parts = [(self.column_mass() - self.columns.mass)[block].abs().sum()[None] for block in self.columns.blocks]
        return float(self.columns.sum(parts, self.p.new_empty(1), RATIO_BITS))

    def run_fixed(self, logits: Logits, *, iterations: int) -> Tensor:
        """Iterate a fixed number of times without a host read; return the L1 error of the row marginal, a scalar."""
        stop = self.iterations + iterations
        self._first_kernel(logits, iterations)
        count, error = stop - self.iterations, torch.full_like(self.p[0], torch.inf)
        for index in range(count):
            if index and index % FOLD_EVERY == 0:
                self._g = self._g + self._v.log()
                self._build_kernel(logits)
            ratio, self._v = self._iterate(clamp=True)
            gradient = self._gradient(ratio)
            last_error, error = error, gradient.abs().sum()
            if index + 1 == count:  # the present scalings have this error
                break
            if index % HESSIAN_EVERY == 1:
                self._hessian = self._build_hessian(ratio)
            step = -ratio.log()  # Sinkhorn's, also after a step that made the error larger
            if self._hessian is not None:
                step = torch.where(error < last_error, self._hessian.step(gradient), step)
            self._w = self._w * step.exp()
        return error

    def run_once(self, logits: Logits, *, dual_balance: float) -> None:
        """Make one column step from the start's ``g``, then exact rows (docs/mathematics.md, eq. 9).

        The step is that of a column marginal held by a KL penalty ρ, ``v = (q / c)^(ρ / (ρ + ε))`` (Chizat et al. 2018,
        "Scaling algorithms for unbalanced optimal transport problems"), with ``dual_balance`` in [0, 1] the exponent:
        0 leaves columns free, 1 is Sinkhorn's step. ``column_ratio`` keeps ``c / q``, from before the step.
        """
        self._build_kernel(logits)
        self.iterations += 1
        ratio = (self._column_sums() / self.columns.mass).masked_fill_(self._empty, 1)  # c / q, (m,)
        self.column_ratio = ratio.clamp(1 / LARGEST, LARGEST)
        if dual_balance:
            self._v = self.column_ratio**-dual_balance
            parts = []
            for kernel, block in zip(self._kernel, self.columns.blocks, strict=True):
                parts.append((torch.mv(kernel, self._v[block]) * self._w).clamp_max(LARGEST_CHANGE))
            self._w = self._w / self.columns.sum(parts, self.p, RATIO_BITS).masked_fill(self._unreached, 1)

    def potentials(self) -> tuple[Tensor, Tensor]:
        """``f - log p``, ``(n,)``, finite also for rows without mass, and this rank's ``g (m,)``."""
        return self._w.log() - self._shift, self._g + self._v.log()

    def conditional_blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of ``T_ij / p_i``, ``(n, b)``, each overwritten by the next."""
        for kernel, block in zip(self._kernel, self.columns.blocks, strict=True):
            weights = torch.mul(kernel, self._v[block], out=self._scratch(kernel.shape))
            yield block, weights.mul_(self._w[:, None])

    def conditional(self) -> Tensor:
        """``T_ij / p_i`` for this rank's columns, ``(n, m)``."""
        whole = self.p.new_empty(len(self.p), len(self.columns.features))
        for block, weights in self.conditional_blocks():
            whole[:, block] = weights
        return whole

    def conditional_matmul(self, values: Callable[[slice], Tensor], width: int) -> Tensor:
        """``T values / p``, ``(n, width)``, over all columns. Collective.

        Args:
            values: gives ``(b, width)`` for a block of columns, with entries of absolute value at most 1000.
        """
        in_kernel = len(self.p) < width  # the smaller factor takes the scalings
        if in_kernel:
            self._fold_into_kernel()
        parts = []
        for kernel, block in zip(self._kernel, self.columns.blocks, strict=True):
            y = values(block)
            scaled = y if in_kernel else torch.mul(self._v[block, None], y, out=self._scratch(y.shape))
            parts.append(kernel @ scaled)
        return self.columns.sum(parts, self.p.new_empty(len(self.p), width), RATIO_BITS, self._w[:, None])

    def column_mass(self) -> Tensor:
        """``c = Tᵀ 1`` of this rank's columns, ``(m,)``."""
        return self._column_sums() * self._v

    def _first_kernel(self, logits: Logits, most_iterations: int) -> None:
        """Build ``K`` at the start, halving ε on the way if the iterations allow it."""
        halvings = self._halvings if most_iterations > 2 * self._halvings * HALVING_ITERATIONS else 0
        self._build_kernel(logits, 0.5**halvings)
        for level in range(halvings, 0, -1):
            for _ in range(HALVING_ITERATIONS):
                ratio, self._v = self._iterate(clamp=True)
                self._w = self._w / ratio
            self._halve_epsilon(2.0**level)
        self._halvings = 0

    def _build_kernel(self, logits: Logits, scale: float = 1.0) -> None:
        """Build ``K`` at the present ``g`` and make the rows exact: a half-iteration in the log domain.

        With a ``scale`` below 1, exponents are smaller by it, as for a larger ε.
        """
        largest, sums = [], []
        for kernel, block in zip(self._kernel, self.columns.blocks, strict=True):
            logits.into(block, kernel)
            largest.append(kernel.add_(self._g[block]).amax(dim=1))
        shift = self.columns.max(largest, self.p)
        self._shift = shift.masked_fill(shift == -torch.inf, 0)  # (n,)
        for kernel in self._kernel:
            torch.add(-scale * self._shift[:, None], kernel, alpha=scale, out=kernel)
            # Zeros are set afterwards: the exponential of -inf takes ten times as long as that of a number.
            kernel.clamp_min_(SMALLEST_LOG - 1).exp_()
            sums.append(torch.threshold_(kernel, math.exp(SMALLEST_LOG), 0).sum(dim=1))
        self._make_rows_exact(sums)
        self.kernel_builds += 1

    def _halve_epsilon(self, scale: float) -> None:
        """Square the scaled kernel, and make the rows exact. ``scale`` is the present ε over that of the logits."""
        self._g = self._g + scale * self._v.log()
        self._shift = self._shift - scale * self._w.log()
        sums = []
        for kernel, block in zip(self._kernel, self.columns.blocks, strict=True):
            kernel.mul_(self._v[block]).mul_(self._w[:, None]).square_()
            sums.append(torch.threshold_(kernel, math.exp(SMALLEST_LOG), 0).sum(dim=1))
        self._make_rows_exact(sums)

    def _fold_into_kernel(self) -> None:
        """Fold ``v`` into the kernel and ``g``: in place, as a scaled copy would take three times as long."""
        for kernel, block in zip(self._kernel, self.columns.blocks, strict=True):
            kernel.mul_(self._v[block])
        self._g = self._g + self._v.log()
        self._v = torch.ones_like(self._v)

    def _make_rows_exact(self, sums: list[Tensor]) -> None:
        """Set ``w`` from the kernel's row sums by block, ``(n,)`` each, and ``v`` to 1."""
        mass = self.columns.sum(sums, self.p, MASS_BITS)
        self._unreached = mass == 0  # (n,) rows whose class has no columns
        self._w = mass.masked_fill(self._unreached, 1).reciprocal()
        self._v = torch.ones_like(self.columns.mass)

    def _column_sums(self) -> Tensor:
        """``Kᵀ (p w)``, ``(m,)``."""
        u = self.p * self._w
        sums = [torch.mv(kernel.T, u) for kernel in self._kernel]
        if len(sums) == 1:
            return sums[0]
        return torch.cat(sums) if sums else torch.zeros_like(self.columns.mass)

    def _iterate(self, *, clamp: bool = False) -> tuple[Tensor, Tensor]:
        """Update the columns, ``v = q / Kᵀ (p w)``, and sum the rows, ``r = w (K v)`` (eq. 5).

        Args:
            clamp: keep ``v`` and ``r`` in the safe range.

        Returns:
            ``r (n,)`` and ``v (m,)``.
        """
        self.iterations += 1
        v = (self.columns.mass / self._column_sums()).masked_fill_(self._empty, 1)
        if clamp:
            v.clamp_(1 / LARGEST, LARGEST)
        parts = [
            torch.mv(kernel, v[block]).mul_(self._w).clamp_max_(LARGEST_CHANGE)
            for kernel, block in zip(self._kernel, self.columns.blocks, strict=True)
        ]
        ratio = self.columns.sum(parts, self.p, RATIO_BITS).masked_fill_(self._unreached, 1)
        return ratio.clamp_min_(1 / LARGEST_CHANGE) if clamp else ratio, v

    def _gradient(self, ratio: Tensor) -> Tensor:
        """``p - T 1``, ``(n,)``: of the dual objective with respect to ``log w`` (eq. 6)."""
        return torch.addcmul(self.p, self.p, ratio, value=-1)

    def _is_out_of_range(self) -> bool:
        """Whether a column's scaling has left the safe range, on any rank."""
        extremes = []
        if len(self._v):
            least, most = self._v.aminmax()
            extremes = [torch.stack([most, -least])]
        largest, minus_smallest = self.columns.max(extremes, self.p.new_empty(2)).tolist()
        return not (largest <= LARGEST and -minus_smallest >= 1 / LARGEST)

    def _build_hessian(self, ratio: Tensor) -> RowHessian:
        self.hessians += 1
        return RowHessian(
            self.columns, self._kernel, self._scratch, self.p, self._w, self._v, ratio, self._empty, self._roots
        )

    def _scratch(self, shape: torch.Size) -> Tensor:
        """Reused memory for one block's intermediate result; allocating it would cost more than the arithmetic."""
        if self._buffer.numel() < shape.numel():
            self._buffer = self.p.new_empty(shape.numel())
        return self._buffer[: shape.numel()].view(shape)

    def _update_in_log_domain(self, logits: Logits) -> None:
        """Update the columns at the present ``f``: ``g = log q - logsumexp(logits + f)``."""
        f = self.p.log() + self._w.log() - self._shift
        g = []
        for kernel, block in zip(self._kernel, self.columns.blocks, strict=True):
            logits.into(block, kernel)
            g.append(self.columns.mass[block].log() - torch.logsumexp(kernel.add_(f[:, None]), dim=0))
        if g:
            self._g = torch.cat(g).masked_fill_(self._empty, -torch.inf)


def _is_slow(error: float, last_error: float, tolerance: float) -> bool:
    """Whether the error, at its present rate, needs more than ``SLOW`` iterations to reach the tolerance."""
    rate = min(error / last_error, 0.999)
    return rate > 0 and (error > FAR or math.log(tolerance / error) / math.log(rate) > SLOW)
