"""Memory of this rank, in bytes."""

from __future__ import annotations

import os
from contextlib import suppress

import torch

HOST_TAGS = ("memory/resident_bytes", "memory/available_bytes")
GPU_TAGS = ("memory/gpu_peak_bytes", "memory/gpu_reserved_bytes")


def memory_bytes(device: torch.device) -> list[float]:
    """Values of ``HOST_TAGS``, and of ``GPU_TAGS`` on a GPU; 0 if the system hides a value.

    The peak is that since the last call.
    """
    found = [0.0, 0.0]
    with suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm", "rb") as file:
            found[0] = float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        with open("/proc/meminfo", "rb") as file:
            found[1] = float(int(file.read().partition(b"MemAvailable:")[2].split()[0]) * 1024)
    if device.type == "cuda":
        found += [float(torch.cuda.max_memory_allocated(device)), float(torch.cuda.memory_reserved(device))]
        torch.cuda.reset_peak_memory_stats(device)
    return found
