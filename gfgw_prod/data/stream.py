"""The stream of a rank's cells: every row once an epoch, in an order keyed by seed and epoch.

Slot ``i`` of step ``s`` reads position ``s B + i`` of that order. The position is a function of the step, so no loader
state is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torchdata import nodes

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.cells import Cell, CellAssignment, random_stream


@lru_cache(maxsize=4)  # two epochs of each of a run's two orders
def _permutation(seed: int, stream: str, epoch: int, length: int) -> Tensor:
    order = torch.randperm(length, generator=random_stream(seed, stream, epoch))
    return order.to(torch.int32) if length < 2**31 else order


class KeyedOrder:
    """An endless sequence of row ids: epoch ``e`` is the permutation keyed by ``(seed, stream, e)``."""

    def __init__(self, seed: int, length: int, stream: str = "order"):
        self.length = length
        self._seed, self._stream = seed, stream

    def rows(self, start: int, count: int) -> Tensor:
        """Row ids at positions ``start`` to ``start + count``, ``(count,)``, across epoch boundaries."""
        pieces = []
        while count > 0:
            epoch, offset = divmod(start, self.length)
            taken = min(count, self.length - offset)
            pieces.append(_permutation(self._seed, self._stream, epoch, self.length)[offset : offset + taken])
            start, count = start + taken, count - taken
        return torch.cat(pieces).long()


@dataclass(frozen=True)
class CellRows:
    """The data of a cell: row ids ``(b,)``, class ids ``(b,)``, images ``(b, c, h, w)`` in [-1, 1]."""

    cell: Cell
    ids: Tensor
    labels: Tensor
    images: Tensor

    def pin_memory(self) -> CellRows:
        """A copy in page-locked memory, from which a GPU copies while it computes."""
        return replace(self, labels=self.labels.pin_memory(), images=self.images.pin_memory())


def cell_stream(
    table: Table,
    assignment: CellAssignment,
    *,
    seed: int,
    first_step: int,
    last_step: int,
    size: int,
    rank: int,
    workers: int = 1,
    pin: bool = False,
) -> Iterator[CellRows]:
    """The rank's cells of steps ``first_step`` to ``last_step`` (exclusive), in the order of ``assignment.turns_of``.

    Args:
        workers: threads that fetch ahead; 0 fetches on demand.
        pin: copy images to page-locked memory.
    """
    order = KeyedOrder(seed, len(table))

    def fetch(cell: Cell) -> CellRows:
        ids = order.rows((cell.step * assignment.cells + cell.index) * size, size)
        return CellRows(cell, ids, table.labels[ids], table.rows(ids))

    turns = (assignment.turns_of(seed, step, size=size, rank=rank) for step in range(first_step, last_step))
    node: Any = nodes.IterableWrapper(turn.cell for of_step in turns for turn in of_step)
    # With 0 workers torchdata maps in the calling thread.
    node = nodes.ParallelMapper(node, fetch, num_workers=workers, in_order=True, method="thread", prebatch=None)
    if pin:
        node = nodes.PinMemory(node)
    if workers:
        node = nodes.Prefetcher(node, prefetch_factor=max(4, 2 * workers))
    return iter(nodes.Loader(node))


def flip_some(images: Tensor, uniforms: Tensor) -> Tensor:
    """Mirror the images ``(n, c, h, w)`` whose uniform number ``(n,)`` is below one half."""
    return torch.where((uniforms < 0.5)[:, None, None, None], images.flip(-1), images)
