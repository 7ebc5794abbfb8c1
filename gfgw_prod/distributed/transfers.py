"""Copies from main memory to a GPU that the host does not wait for."""

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
