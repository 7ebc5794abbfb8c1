"""64-bit checksums of tensors. Equal bits give equal checksums; different bits almost surely give different ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from gfgw_prod.distributed.shards import local

WORD = 8  # bytes
ROW = 4096  # words
SMALL = 1 << 16  # elements; smaller tensors are concatenated first, because many calls cost more than a copy
MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)  # odd, 2**64 divided by the golden ratio


def checksum(tensors: Sequence[Tensor]) -> Tensor:
    """Compute an int64 checksum ``()`` of tensors on one device; of sharded tensors, only this rank's part counts.

    8-byte words are laid out in rows. The sums of all rows and columns are multiplied by distinct odd numbers and
    added modulo ``2**64``. This detects a change of one word, swapped words, changed signs, and changes that cancel in
    a plain sum. It is many times faster than a distinct factor for every word.
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
    """Checksum ``()`` of a tensor ``(n,)``."""
    bits = flat.view(torch.uint8)
    if flat.storage_offset() * flat.element_size() % WORD:
        bits = bits.clone()
    whole = len(bits) // (ROW * WORD) * (ROW * WORD)
    rest = pad(bits[whole:], (0, -len(bits) % WORD))
    parts = bits[:whole].view(torch.int64).view(-1, ROW), rest.view(torch.int64)[None]
    sums = [part.sum(dim=dim) for part in parts for dim in (0, 1)]
    total = torch.cat(sums)
    mixed = total ^ (total >> 32)  # else a flip of the highest bit in a row sum and a column sum would cancel
    return (mixed * _odd_numbers(len(total), flat.device)).sum()


@cache
def _all_odd_numbers(count: int, device: torch.device) -> Tensor:
    return (2 * torch.arange(count, device=device) + 1) * MULTIPLIER


def _odd_numbers(count: int, device: torch.device) -> Tensor:
    return _all_odd_numbers(max(ROW, 1 << count.bit_length()), device)[:count]
