"""Checksums of tensors' bits: equal where the bits are, and all but surely different where one of them is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gfgw_prod.distributed.shards import local


def checksum(tensors: Sequence[Tensor]) -> Tensor:
    """A 64-bit integer, ``()``, on the tensors' device; of sharded tensors, of this rank's parts."""
    parts = [local(tensor) for tensor in tensors]
    hashes = [torch.hash_tensor(part).view(torch.int64) for part in parts if part.numel()]
    return torch.stack(hashes).sum() if hashes else parts[0].new_zeros((), dtype=torch.int64)
