"""Copies between main memory and a GPU that the host does not wait for. They need page-locked memory."""

from __future__ import annotations

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


def lock_pages(memory: Tensor) -> bool:
    """Lock the pages of a tensor in main memory; ``False`` if the system refuses. Undone by ``unlock_pages``.

    Tensors that torch allocates page-locked take up to twice their size, as it rounds to powers of two.
    """
    return int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) == 0


def unlock_pages(memory: Tensor) -> None:
    """Undo ``lock_pages``, before the memory is freed."""
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
