"""Memory and speed of every rank, compared on all ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from gfgw_prod.distributed.world import World
from gfgw_prod.process.standard_streams import Warned
from gfgw_prod.telemetry.sinks import Value
from gfgw_prod.telemetry.stragglers import OwnTime, StragglerWatch, slowest

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


class RankMetrics:
    """Compares the ranks at every record, and names those that hold up the others.

    Args:
        ratio: ``resilience.straggler_ratio``.

    Attributes:
        own_time: times this rank's steps.
    """

    def __init__(self, world: World, hosts: Sequence[str], ratio: float, log: Callable[[str], None]):
        self._world, self._log = world, log
        self._stragglers = StragglerWatch(hosts, ratio)
        self.own_time = OwnTime(lambda: world.traffic.seconds)

    def values(self) -> dict[str, Value]:
        """Metrics by tag of the catalogue. Collective.

        On GPUs own times are left out: collectives are only enqueued, so the host's time is the same on all ranks.
        """
        device, (mean, steps) = self._world.device, self.own_time.take()
        mine = torch.tensor([mean, *memory_bytes(device)], dtype=torch.float64, device=device)
        seconds, *memory = self._world.all_gather(mine).T.tolist()
        if device.type != "cpu":
            return dict(zip((*HOST_TAGS, *GPU_TAGS), memory, strict=True))
        for line in self._stragglers.compare(seconds, steps, time.monotonic()):
            self._log(Warned(line))
        rank, ratio = slowest(seconds)
        return {
            **dict(zip(HOST_TAGS, memory, strict=True)),
            "speed/rank_step_seconds": seconds,
            "speed/slowest_rank": rank,
            "speed/slowest_ratio": ratio,
        }
