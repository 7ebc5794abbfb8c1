"""Sums in 64-bit fixed point, whose bits do not depend on the number of ranks.

Integer addition is associative, so an all-reduce gives the same bits for every order and for every distribution of the
parts over ranks. The parts themselves must not depend on that distribution: they are results of fixed blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gfgw_prod.distributed.world import World


def exact_sum(parts: Sequence[Tensor], like: Tensor, world: World, bits: int, factor: Tensor | None = None) -> Tensor:
    """Sum ``part * factor`` over all parts of all ranks, each truncated to a multiple of ``2**-bits``. Collective.

    All-reduces 8 bytes per element of ``like``.

    Args:
        parts: this rank's, with the shape of ``like``; may be empty. The sum of absolute values over all ranks must be
            below ``2**(63 - bits)``.
        like: tensor with the shape, dtype and device of the sum.
        bits: binary digits after the point.
        factor: must broadcast against a part.
    """
    scale = torch.full((1,), 2.0**bits, dtype=torch.float64, device=like.device)
    if factor is not None:
        scale = factor.double() * scale
    total = torch.zeros(like.shape, dtype=torch.int64, device=like.device)
    for part in parts:  # one by one, so that a part stays in the cache
        total += (part * scale).to(torch.int64).view(total.shape)
    return (world.all_reduce_sum(total).double() * 2.0**-bits).to(like.dtype)
