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
        self._inverse_root = (p * ratio).double().rsqrt().masked_fill_(p <= 0, 0)
        factor, failed = torch.linalg.cholesky_ex(hessian, upper=True)
        identity = torch.eye(len(p), dtype=factor.dtype, device=factor.device)
        self._factor = torch.where(failed == 0, factor, identity)  # the identity gives a step like Sinkhorn's

    def step(self, gradient: Tensor) -> Tensor:
        """The change of ``log w``, ``(n,)``, at a gradient ``(n,)`` of the dual objective.

        The quadratic model fails where a potential must change by several nats, as between clusters that hardly
        exchange mass: there Newton's ``d`` is far too long. It is shortened to ``sign(d) log(1 + |d|)``.
        """
        scaled = gradient * self._inverse_root  # in float64
        newton = torch.cholesky_solve(scaled[:, None], self._factor, upper=True)[:, 0] * self._inverse_root
        return torch.copysign(newton.abs().log1p(), newton).to(gradient.dtype)


def _gram(rows: Tensor) -> Tensor:
    """``rows @ rows.T`` without its lower left quarter: the factorisation reads only the upper triangle."""
    half = len(rows) // 2
    gram = rows.new_zeros(len(rows), len(rows))
    gram[:half] = rows[:half] @ rows.T
    gram[half:, half:] = rows[half:] @ rows[half:].T
    return gram
