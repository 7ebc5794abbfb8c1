"""Memory and speed of every rank, compared on all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from gfgw_prod.distributed.world import World
from gfgw_prod.telemetry.memory import GPU_TAGS, HOST_TAGS, memory_bytes
from gfgw_prod.telemetry.sinks import Value
from gfgw_prod.telemetry.stragglers import OwnTime, StragglerWatch, slowest


class RankMetrics:
    """Compares the ranks at every record, and names those that hold up the others.

    Args:
        hosts: host of each rank.
        ratio: ``resilience.straggler_ratio``.
        log: prints a line.

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
            self._log(line)
        rank, ratio = slowest(seconds)
        return {
            **dict(zip(HOST_TAGS, memory, strict=True)),
            "speed/rank_step_seconds": seconds,
            "speed/slowest_rank": rank,
            "speed/slowest_ratio": ratio,
        }
