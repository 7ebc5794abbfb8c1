"""Checksums of tensors' bits: equal where the bits are, and all but surely different where they are not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from gfgw_prod.distributed.shards import local

WORD = 8  # bytes
ROW = 4096  # words
SMALL = 1 << 16  # numbers; tensors below are put together first: many calls cost more than a copy
SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)  # an odd multiplier, 2**64 over the golden ratio


def checksum(tensors: Sequence[Tensor]) -> Tensor:
    """A 64-bit integer, ``()``, on the tensors' device; of sharded tensors, of this rank's parts.

    Words are laid out in rows. The sums of all rows and of all columns, each times an odd number of its own, are added
    modulo ``2**64``: a change of one word shows, and so do changes of a few that would cancel in a plain sum, exchanges
    and changes of sign. Many times cheaper than a number of its own for every word.
    """
    parts = [local(tensor) for tensor in tensors]
    small: dict[torch.dtype, list[Tensor]] = {}
    sums = []
    for part in parts:
        if part.numel() < SMALL:
            small.setdefault(part.dtype, []).append(part.flatten())
        else:
            sums.append(_sum(part.contiguous().view(-1)))
    sums += [_sum(torch.cat(group)) for group in small.values()]
    return (torch.stack(sums) * _odd_numbers(len(sums), sums[0].device)).sum()


def _sum(flat: Tensor) -> Tensor:
    """Of the bits of a tensor ``(n,)``."""
    bits = flat.view(torch.uint8)
    if missing := -len(bits) % WORD:
        bits = pad(bits, (0, missing))
    elif flat.storage_offset() * flat.element_size() % WORD:
        bits = bits.clone()
    words = bits.view(torch.int64)
    whole = len(words) // ROW * ROW
    sums = [each.sum(dim=dim) for each in (words[:whole].view(-1, ROW), words[None, whole:]) for dim in (0, 1)]
    total = torch.cat(sums)
    mixed = total ^ (total >> 32)  # else a change of the highest bit, times two odd numbers, is none
    return (mixed * _odd_numbers(len(total), flat.device)).sum()


@cache
def _all_odd_numbers(count: int, device: torch.device) -> Tensor:
    return (2 * torch.arange(count, device=device) + 1) * SPREAD


def _odd_numbers(count: int, device: torch.device) -> Tensor:
    return _all_odd_numbers(max(ROW, 1 << count.bit_length()), device)[:count]
