"""Exact nearest neighbours among rows spread over the ranks, block by block, in float64.

Each rank compares its own rows with all rows, which come in blocks of columns. Blocks do not depend on the world size,
so the distances are the same bits on any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gfgw_prod.distributed.row_table import RowTable

BLOCK_ROWS = 256  # of one rank
BLOCK_COLUMNS = 8192  # of all ranks
# Called before each part of the work, equally often on all ranks: title, parts done, parts in all.
Progress = Callable[[str, int, int], None]


def nearest_others(rows: RowTable, k: int, whose: str, on_progress: Progress) -> Tensor:
    """Distances of each of ``n`` rows to its ``k < n`` nearest others, ascending, ``(n, k)``. Collective."""
    found = rows.local.new_full((len(rows.local), k), torch.inf, dtype=torch.float64, device=rows.world.device)
    for pair in _pairs(rows, rows, f"neighbours of {whose}", on_progress):
        own = pair.rows.start + torch.arange(len(pair.distances), device=found.device) + rows.start
        first, distances = pair.columns.start, pair.distances
        inside = (own >= first) & (own < pair.columns.stop)
        distances[inside, own[inside] - first] = torch.inf
        nearest = torch.cat([found[pair.rows], distances], dim=1).topk(k, dim=1, largest=False)
        found[pair.rows] = nearest.values
    return _gather(found, rows)


@dataclass(frozen=True)
class Crossing:
    """Distances and balls between ``n`` samples and ``m`` data rows."""

    nearest_row: Tensor  # (n,) data row nearest to each sample
    nearest_distance: Tensor  # (n,) distance to that row
    in_data: Tensor  # (n,) whether each sample lies in any data row's ball
    sample_distance: Tensor  # (m,) distance of each data row to the nearest sample
    in_samples: Tensor  # (m,) whether each data row lies in any sample's ball


def cross(
    samples: RowTable, data: RowTable, sample_radii: Tensor, data_radii: Tensor, on_progress: Progress
) -> Crossing:
    """Compare ``n`` samples with ``m`` data rows; balls have radii ``(n,)`` and ``(m,)``. Collective."""
    world, count = samples.world, len(samples.local)
    radii, data_radii = sample_radii[samples.start : samples.end, None].to(world.device), data_radii.to(world.device)
    closest = torch.full((data.total,), torch.inf, dtype=torch.float64, device=world.device)
    held = torch.zeros(data.total, dtype=torch.int32, device=world.device)
    best = torch.full((count,), torch.inf, dtype=torch.float64, device=world.device)
    exact, row, inside = torch.zeros_like(best), torch.zeros_like(best), torch.zeros_like(best)
    for pair in _pairs(samples, data, "samples among data", on_progress):
        mine, part, distances = pair.rows, pair.columns, pair.distances
        least, at = distances.min(dim=1)
        nearer = least < best[mine]
        row[mine] = torch.where(nearer, (at + part.start).double(), row[mine])
        # The norm of the difference is exactly 0 for a copy; the expanded square of `distances` is not.
        exact[mine] = torch.where(nearer, (pair.left - pair.right[at]).norm(dim=1), exact[mine])
        best[mine] = best[mine].minimum(least)
        inside[mine] = inside[mine].maximum((distances <= data_radii[part]).any(dim=1).double())
        closest[part] = closest[part].minimum(distances.amin(dim=0))
        held[part] = held[part].maximum((distances <= radii[mine]).any(dim=0).int())
    found = _gather(torch.stack([row, exact, inside], dim=1), samples)
    return Crossing(
        nearest_row=found[:, 0].long(),
        nearest_distance=found[:, 1],
        in_data=found[:, 2].bool(),
        sample_distance=-world.all_reduce_max(-closest).cpu(),
        in_samples=world.all_reduce_max(held).bool().cpu(),
    )


@dataclass(frozen=True)
class _Pair:
    """A block of this rank's rows and a block of all columns, float64."""

    rows: slice  # within this rank's rows
    columns: slice  # within all rows
    left: Tensor  # (b, d) features of the rows
    right: Tensor  # (c, d) features of the columns
    distances: Tensor  # (b, c)


def _pairs(rows: RowTable, columns: RowTable, title: str, on_progress: Progress) -> Iterator[_Pair]:
    """Yield all pairs of blocks; ranks with fewer rows than others report progress too. Collective."""
    device, starts = rows.world.device, range(0, min(rows.most_local, rows.total), BLOCK_ROWS)
    firsts = range(0, columns.total, BLOCK_COLUMNS)
    for index, first in enumerate(firsts):
        part = slice(first, min(first + BLOCK_COLUMNS, columns.total))
        right = columns.rows(torch.arange(part.start, part.stop)).double()
        squares = right.square().sum(dim=1)
        for block, start in enumerate(starts):
            on_progress(title, index * len(starts) + block, len(firsts) * len(starts))
            mine = slice(start, min(start + BLOCK_ROWS, len(rows.local)))
            left = rows.local[mine].to(device, torch.float64)
            if len(left):
                squared = left.square().sum(dim=1, keepdim=True) + squares - 2 * (left @ right.T)
                yield _Pair(mine, part, left, right, squared.clamp_min_(0).sqrt_())


def _gather(mine: Tensor, rows: RowTable) -> Tensor:
    """Gather the results for each rank's rows, in row order, on the CPU. Collective."""
    padded = mine.new_zeros(rows.most_local, *mine.shape[1:])
    padded[: len(mine)] = mine
    return rows.world.all_gather(padded).flatten(0, 1)[: rows.total].cpu()
