"""Newton's step on the rows' potential, for where Sinkhorn's iterations converge slowly.

With columns kept exact, the dual objective is concave in ``f`` with gradient ``p - r``, ``r = T 1``, and Hessian
``-(diag(r) - T diag(1/q) Tᵀ)`` (Brauer, Clason, Lorenz and Wirth 2017, "A Sinkhorn-Newton method for entropic optimal
transport"). It is ``n x n``, a product of the cost of a linearisation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gfgw_prod.transport.columns import Columns

GRAM_BITS = 45  # its entries lie in [0, 1]
SMALLEST = 1e-12  # entries below it are 0: their products would be denormal, and slow
# Curvatures below this, relative to Sinkhorn's metric, drown in the rounding of the product.
DAMPING = {torch.float32: 1e-5, torch.float64: 1e-12}
LONGEST = 20.0  # largest change of a potential in one step, nats


class RowHessian:
    """The factored Hessian at one coupling ``diag(p w) K diag(v)`` with row sums ``p ratio``. Collective to build.

    It serves the couplings near by as well (the chord method): its directions cost next to nothing, and where they
    lose their grip a new one is built.
    """

    def __init__(
        self,
        columns: Columns,
        kernel: list[Tensor],
        scratch: Callable[[torch.Size], Tensor],
        p: Tensor,
        w: Tensor,
        v: Tensor,
        ratio: Tensor,
    ):
        """
        Args:
            kernel: ``K`` by column block.
            scratch: lends room for a tensor of a given shape.
        """
        scale = p.sqrt() * w / ratio.sqrt()
        spread = (v / columns.mass.sqrt()).masked_fill_(columns.mass <= 0, 0)
        parts = []
        for block_kernel, block in zip(kernel, columns.blocks, strict=True):
            normalised = torch.mul(block_kernel, spread[block], out=scratch(block_kernel.shape)).mul_(scale[:, None])
            torch.threshold_(normalised, SMALLEST, 0.0)
            parts.append(_gram(normalised))
        hessian = -columns.sum(parts, p.new_empty(len(p), len(p)), GRAM_BITS).double()
        hessian.diagonal().add_(1 + DAMPING[p.dtype])
        self._p, self._root = p, (p * ratio).double().sqrt()
        self._factor, self._failed = torch.linalg.cholesky_ex(hessian, upper=True)

    def step(self, ratio: Tensor) -> Tensor:
        """The change of ``log w``, ``(n,)``, for row sums ``p ratio``; Sinkhorn's if there is no other."""
        p, root, empty = self._p, self._root, self._p <= 0
        gradient = ((p - p * ratio).double() / root).masked_fill_(empty, 0)
        solved = torch.cholesky_solve(gradient[:, None], self._factor, upper=True)[:, 0]
        step = (solved / root).masked_fill_(empty, 0).to(p.dtype)
        step = torch.where((self._failed == 0) & step.isfinite().all(), step, -ratio.log())
        return step * (LONGEST / step.abs().amax().clamp_min(LONGEST))


def _gram(rows: Tensor) -> Tensor:
    """``rows @ rows.T``, of which the factorisation reads the upper triangle alone; half the rest is not computed."""
    half = len(rows) // 2
    gram = rows.new_zeros(len(rows), len(rows))
    gram[:half] = rows[:half] @ rows.T
    gram[half:, half:] = rows[half:] @ rows[half:].T
    return gram
