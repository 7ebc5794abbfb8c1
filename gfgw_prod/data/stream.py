"""The stream: every row once an epoch, in an order keyed by seed and epoch.

Slot ``i`` of step ``s`` reads position ``s B + i``.

The position lives in our own sampler, a pure function of the step, so torchdata's loader state is never stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torchdata import nodes

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.cells import Cell, Spread, random_stream


class KeyedOrder:
    """An endless sequence of row ids: epoch ``e`` is the permutation keyed by ``(seed, stream, e)``."""

    def __init__(self, seed: int, length: int, stream: str = "order"):
        self.length = length
        self._epoch = lru_cache(maxsize=2)(
            lambda epoch: torch.randperm(length, generator=random_stream(seed, stream, epoch))
        )

    def rows(self, start: int, count: int) -> Tensor:
        """Row ids at positions ``start`` to ``start + count``, ``(count,)``, across epoch boundaries."""
        pieces = []
        while count > 0:
            epoch, offset = divmod(start, self.length)
            taken = min(count, self.length - offset)
            pieces.append(self._epoch(epoch)[offset : offset + taken])
            start, count = start + taken, count - taken
        return torch.cat(pieces)


@dataclass(frozen=True)
class CellRows:
    """What the stream brings to a cell: row ids ``(b,)``, class ids ``(b,)``, images ``(b, c, h, w)`` in [-1, 1]."""

    cell: Cell
    ids: Tensor
    labels: Tensor
    images: Tensor


def cell_stream(
    table: Table, spread: Spread, *, seed: int, first_step: int, last_step: int, size: int, rank: int
) -> Iterator[CellRows]:
    """The rank's cells of steps ``first_step`` to ``last_step`` (exclusive), one ``CellRows`` per round, prefetched.

    Rounds come in the order of ``spread.rounds``; torchdata fetches ahead in a thread.
    """
    order = KeyedOrder(seed, len(table))

    def positions() -> Iterator[Cell]:
        for step in range(first_step, last_step):
            for turn in spread.rounds(seed, step, size=size, rank=rank):
                yield turn.cell

    def fetch(cell: Cell) -> CellRows:
        ids = order.rows((cell.step * spread.cells + cell.index) * size, size)
        return CellRows(cell, ids, table.labels[ids], table.rows(ids))

    source = nodes.IterableWrapper(positions())
    mapped = nodes.ParallelMapper(source, fetch, num_workers=1, in_order=True, method="thread", prebatch=None)
    return iter(nodes.Loader(nodes.Prefetcher(mapped, prefetch_factor=4)))


def flip_some(images: Tensor, uniforms: Tensor) -> Tensor:
    """Mirrors the images ``(n, c, h, w)`` whose uniform number ``(n,)`` is below one half."""
    return torch.where((uniforms < 0.5)[:, None, None, None], images.flip(-1), images)
