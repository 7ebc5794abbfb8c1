"""Sharded tensors, and this rank's part of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Shards:
    """How a generator is sharded: this rank holds shard ``own`` of ``count``, and ``group`` has a rank for each."""

    own: int
    count: int
    group: ProcessGroup


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, or a replicated tensor itself; detached, in the same memory."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    return tensor.detach()
