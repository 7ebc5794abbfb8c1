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


def newton_step(
    columns: Columns,
    kernel: list[Tensor],
    scratch: Callable[[torch.Size], Tensor],
    p: Tensor,
    w: Tensor,
    v: Tensor,
    ratio: Tensor,
) -> Tensor:
    """The change of ``log w``, ``(n,)``, for the plan ``diag(p w) K diag(v)`` with row sums ``p ratio``. Collective.

    Args:
        kernel: ``K`` by column block.
        scratch: lends room for a tensor of a given shape.
    """
    scale = p.sqrt() * w / ratio.sqrt()
    spread = torch.where(columns.mass > 0, v / columns.mass.sqrt(), 0)
    parts = []
    for block_kernel, block in zip(kernel, columns.blocks, strict=True):
        normalised = torch.mul(block_kernel, spread[block], out=scratch(block_kernel.shape)).mul_(scale[:, None])
        torch.threshold_(normalised, SMALLEST, 0.0)
        parts.append(normalised @ normalised.T)
    gram = columns.sum(parts, p.new_empty(len(p), len(p)), GRAM_BITS).double()
    root = (p * ratio).double().sqrt()
    gradient = torch.where(p > 0, (p - p * ratio).double() / root, 0)
    hessian = (1 + DAMPING[p.dtype]) * torch.eye(len(p), dtype=torch.float64, device=p.device) - gram
    factor, failed = torch.linalg.cholesky_ex(hessian)
    step = torch.where(p > 0, torch.cholesky_solve(gradient[:, None], factor)[:, 0] / root, 0).to(p.dtype)
    step = torch.where((failed == 0) & step.isfinite().all(), step, -ratio.log())
    return step * (LONGEST / step.abs().amax().clamp_min(LONGEST))
