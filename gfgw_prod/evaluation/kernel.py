"""Kernel distance: the maximum mean discrepancy under a cubic kernel (Bińkowski et al. 2018; KID on Inception)."""

from __future__ import annotations

import torch
from torch import Tensor

from gfgw_prod.distributed.cells import random_stream
from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.evaluation.neighbours import Tick

SUBSETS, SUBSET_ROWS = 100, 1000  # as published


def squared_mmd(first: Tensor, second: Tensor) -> float:
    """The unbiased estimate of MMD² of rows ``(n, d)`` and ``(m, d)`` under ``k(x, y) = (x·y / d + 1)³``, float64."""
    first, second = first.double(), second.double()
    n, m = len(first), len(second)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        inner = (a @ b.T).div_(a.shape[1]).add_(1)
        return inner.square().mul_(inner)  # several times as fast as a power

    within = sum(
        (k.sum() - k.trace()) / (size * (size - 1))
        for k, size in ((kernel(first, first), n), (kernel(second, second), m))
    )
    return float(within - 2 * kernel(first, second).mean())


def kernel_distance(samples: RowTable, data: RowTable, *, seed: int, tick: Tick) -> tuple[float, float]:
    """Mean and standard deviation of MMD² over 100 subsets of 1,000 rows each (fewer if there are not so many).

    Subset ``s`` is drawn from stream ``(seed, "kernel", s)`` and goes to rank ``s mod world_size``. Collective.
    """
    world, size = samples.world, min(SUBSET_ROWS, samples.total, data.total)
    mine = torch.zeros(-(-SUBSETS // world.world_size), dtype=torch.float64, device=world.device)
    for turn, first in enumerate(range(0, SUBSETS, world.world_size)):
        tick("kernel distance", first, SUBSETS)
        own: list[Tensor] = []
        for subset in range(first, min(first + world.world_size, SUBSETS)):  # rows are given to all ranks at once
            stream = random_stream(seed, "kernel", subset)
            drawn = [rows.rows(torch.randperm(rows.total, generator=stream)[:size]) for rows in (samples, data)]
            own = drawn if subset - first == world.rank else own
        if own:
            mine[turn] = squared_mmd(*own)
    values = world.gather(mine).T.flatten()[:SUBSETS].cpu()  # (ranks, turns), in the order of subsets
    return float(values.mean()), float(values.std(correction=0))
