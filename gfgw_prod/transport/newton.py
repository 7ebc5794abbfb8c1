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
LONGEST = 20.0  # largest change of a potential in one step, nats


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
    ):
        # diag(T 1)^(-1/2) Hessian diag(T 1)^(-1/2) = -(I - A Aᵀ) with A = diag(scale) K diag(spread), (n, m).
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
        """The change of ``log w``, ``(n,)``, at row sums ``p ratio``; Sinkhorn's if the factorisation failed."""
        p, root, empty = self._p, self._root, self._p <= 0
        gradient = ((p - p * ratio).double() / root).masked_fill_(empty, 0)
        solved = torch.cholesky_solve(gradient[:, None], self._factor, upper=True)[:, 0]
        step = (solved / root).masked_fill_(empty, 0).to(p.dtype)
        step = torch.where((self._failed == 0) & step.isfinite().all(), step, -ratio.log())
        return step * (LONGEST / step.abs().amax().clamp_min(LONGEST))


def _gram(rows: Tensor) -> Tensor:
    """``rows @ rows.T`` without its lower left quarter: the factorisation reads only the upper triangle."""
    half = len(rows) // 2
    gram = rows.new_zeros(len(rows), len(rows))
    gram[:half] = rows[:half] @ rows.T
    gram[half:, half:] = rows[half:] @ rows[half:].T
    return gram
