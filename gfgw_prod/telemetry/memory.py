"""Memory of this rank, in bytes."""

from __future__ import annotations

import os
from contextlib import suppress

import torch

TAGS = ("memory/resident_bytes", "memory/available_bytes", "memory/gpu_peak_bytes", "memory/gpu_reserved_bytes")
ON_HOST = 2  # the first of them


def of_this_rank(device: torch.device) -> list[float]:
    """By ``TAGS``; zero for what there is none of, or what the system does not tell. Begins a new peak."""
    found = [0.0] * len(TAGS)
    with suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm", "rb") as file:
            found[0] = float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        with open("/proc/meminfo", "rb") as file:
            found[1] = float(int(file.read().partition(b"MemAvailable:")[2].split()[0]) * 1024)
    if device.type == "cuda":
        found[2] = float(torch.cuda.max_memory_allocated(device))
        found[3] = float(torch.cuda.memory_reserved(device))
        torch.cuda.reset_peak_memory_stats(device)
    return found
