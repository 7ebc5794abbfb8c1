"""The memory bank: features of the whole data set, rows sharded over ranks by global row id.

Rank ``r`` of ``W`` holds the contiguous rows that ``torch.chunk`` would give it. Rows are encoded in fixed blocks of
the global order, so a row's features are the same bits whichever rank encodes it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.world import World


class FeatureBank:
    """``N`` feature rows of width ``d``; this rank holds ``local`` ``(rows, d)``, global rows ``start`` onwards."""

    def __init__(self, total: int, dim: int, world: World):
        self.total, self.dim, self.world = total, dim, world
        self.per_rank = -(-total // world.world_size)
        self.start = min(self.per_rank * world.rank, total)
        self.end = min(self.start + self.per_rank, total)
        self.local = torch.zeros(self.end - self.start, dim, device=world.device)
        self._whole: Tensor | None = None

    @torch.no_grad()
    def encode(self, table: Table, extractor: nn.Module, block_rows: int, on_block: Callable[[int], None]) -> None:
        """Fills this rank's rows. ``on_block`` is told after every block how many rows are done."""
        first = self.start // block_rows * block_rows
        for block in range(first, self.end, block_rows):
            ids = torch.arange(block, min(block + block_rows, self.total))
            features = extractor(table.rows(ids).to(self.world.device)).float()
            low, high = max(block, self.start), min(block + block_rows, self.end)
            self.local[low - self.start : high - self.start] = features[low - block : high - block]
            on_block(high - self.start)
        self._whole = None

    def rows(self, ids: Tensor) -> Tensor:
        """Rows by global id on every rank, ``(m,)`` -> ``(m, d)``. Collective: all ranks ask for the same ids."""
        ids = ids.to(self.world.device)
        if self.world.world_size == 1:
            return self.local[ids]
        owner = ids // self.per_rank
        most = int(torch.bincount(owner, minlength=self.world.world_size).max())
        mine = self.local[ids[owner == self.world.rank] - self.start]
        padded = mine.new_zeros(most, self.dim)
        padded[: len(mine)] = mine
        gathered = self.world.gather(padded)  # (W, most, d)
        # The k-th id of an owner stands in its k-th place.
        place = torch.zeros_like(ids)
        for rank in range(self.world.world_size):
            of_rank = owner == rank
            place[of_rank] = torch.arange(int(of_rank.sum()), device=ids.device)
        return gathered[owner, place]

    def whole(self) -> Tensor:
        """All rows on every rank, ``(N, d)``, gathered once. Collective."""
        if self._whole is None:
            self._whole = self.rows(torch.arange(self.total))
        return self._whole
