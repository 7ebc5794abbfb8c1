"""This rank's part of sharded tensors."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, or a replicated tensor itself; detached, in the same memory."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    return tensor.detach()
