"""Sums over ranks whose bits do not depend on how many ranks there are: fixed point in 64-bit integers.

Addition of integers is associative, so a plain all-reduce gives one result for every order and every partition. What
is summed must itself not depend on the partition: the parts are results of fixed blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gfgw_prod.distributed.world import World


def exact_sum(parts: Sequence[Tensor], like: Tensor, world: World, bits: int, factor: Tensor | None = None) -> Tensor:
    """The sum over all ranks of ``part * factor``, each truncated to a multiple of ``2**-bits``. Collective.

    Args:
        parts: this rank's, shaped as ``like``; possibly none. The sum of absolute values over all ranks must stay
            below ``2**(63 - bits)``.
        like: gives the shape, dtype and device of the sum; its values are not used.
        bits: binary digits kept after the point.
        factor: broadcasts against a part.
    """
    scale = torch.full((1,), 2.0**bits, dtype=torch.float64, device=like.device)
    if factor is not None:
        scale = factor.double() * scale
    total = torch.zeros(like.shape, dtype=torch.int64, device=like.device)
    for part in parts:  # one by one, so that the numbers stay in the cache
        total += (part * scale).to(torch.int64).view(total.shape)
    return (world.all_reduce_sum(total).double() * 2.0**-bits).to(like.dtype)
