"""Newton's step on the rows' potential, for where Sinkhorn's iteration converges slowly.

With columns kept exact, the dual objective is concave in ``f`` with gradient ``p - T 1`` and the ``n x n`` Hessian
``-(diag(T 1) - T diag(1/q) Tᵀ)`` (Brauer, Clason, Lorenz and Wirth 2017, "A Sinkhorn-Newton method for entropic optimal
transport"; docs/mathematics.md, eq. 6). Building it costs about as much as a linearisation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gfgw_prod.transport.columns import Columns

GRAM_BITS = 45  # fixed-point bits; entries lie in [0, 1]
SMALLEST = 1e-12  # smaller entries are set to 0: products of denormal numbers are slow
# Curvatures below this, relative to diag(T 1), are lost in the rounding of the product.
DAMPING = {torch.float32: 1e-5, torch.float64: 1e-12}


class RowHessian:
    """The factored Hessian at one coupling ``diag(p w) K diag(v)`` with row sums ``p ratio``. Collective to build.

    It also serves nearby couplings (the chord method), where a direction costs little next to a new Hessian.
    """

    def __init__(
        self,
        columns: Columns,
        kernel: list[Tensor],  # by column block, (n, b) each
        scratch: Callable[[torch.Size], Tensor],  # memory for a tensor
        p: Tensor,
        w: Tensor,
        v: Tensor,
        ratio: Tensor,
        empty: Tensor,  # (m,), columns without mass
        roots: tuple[Tensor, Tensor],  # of the masses of rows (n,) and columns (m,)
    ):
        # diag(T 1)^(-1/2) Hessian diag(T 1)^(-1/2) = -(I - A Aᵀ) with A = diag(scale) K diag(spread), (n, m).
        root_p, root_mass = roots
        scale = root_p * w / ratio.sqrt()
        spread = (v / root_mass).masked_fill_(empty, 0)
        parts = []
        for block_kernel, block in zip(kernel, columns.blocks, strict=True):
            normalised = torch.mul(block_kernel, spread[block], out=scratch(block_kernel.shape)).mul_(scale[:, None])
            parts.append(_gram(torch.threshold_(normalised, SMALLEST, 0.0)))
        hessian = columns.sum(parts, p.new_empty(len(p), len(p)), GRAM_BITS).neg_()
        hessian.diagonal().add_(1 + DAMPING[p.dtype])
        self._inverse_root = (p * ratio).rsqrt_().masked_fill_(p <= 0, 0)
        self._upper, failed = torch.linalg.cholesky_ex(hessian, upper=True)
        self._lower, self._factored = self._upper.mT, failed == 0

    def step(self, gradient: Tensor) -> Tensor:
        """The change of ``log w``, ``(n,)``, at a gradient ``(n,)`` of the dual objective.

        The quadratic model fails where a potential must change by several nats, as between clusters that hardly
        exchange mass: there Newton's ``d`` is far too long. It is shortened to ``sign(d) log(1 + |d|)``.
        """
        scaled = gradient * self._inverse_root
        # Two solves with the factor, as ``cholesky_solve`` does with a copy of it, which costs more than both.
        half = torch.linalg.solve_triangular(self._lower, scaled[:, None], upper=False)
        solved = torch.linalg.solve_triangular(self._upper, half, upper=True)[:, 0]
        # Where the factorisation failed, a step like Sinkhorn's: the Hessian's diagonal instead of the Hessian.
        newton = torch.where(self._factored, solved, scaled).mul_(self._inverse_root)
        return torch.copysign(newton.abs().log1p_(), newton)


def _gram(rows: Tensor) -> Tensor:
    """``rows @ rows.T``; on a CPU only the upper triangle, which the factorisation reads, in four strips."""
    if rows.is_cuda:
        return rows @ rows.T
    gram = rows.new_zeros(len(rows), len(rows))
    height = -(-len(rows) // 4)
    for start in range(0, len(rows), height):
        stop = start + height
        gram[:stop, start:stop] = rows[:stop] @ rows[start:stop].T
    return gram
