"""Copies between main memory and a GPU that the host does not wait for. They need page-locked memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to ``device``. On the way to a GPU it is first copied into page-locked memory.

    From other memory the host would wait until the GPU has done all the work before the copy, also with
    ``non_blocking``.
    """
    if device.type != "cuda" or tensor.device == device:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def lock_pages(memory: Tensor) -> Callable[[], object] | None:
    """Lock the pages of a tensor in main memory; return what undoes it, or ``None`` if the system refuses.

    Tensors that torch allocates page-locked take up to twice their size, as it rounds to powers of two.
    """
    runtime = torch.cuda.cudart()
    if int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) != 0:
        return None
    return lambda: runtime.cudaHostUnregister(memory.data_ptr())  # holds the memory until then
