"""Sharded tensors seen from one rank."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """A sharded tensor's part on this rank, or a replicated tensor itself; shares memory, detached."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    return tensor.detach()
