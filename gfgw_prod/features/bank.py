"""The feature bank: features of the whole data set, sharded over ranks by global row id.

Rows are encoded in fixed blocks of the global order, so a row's features are the same bits on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.distributed.world import World

if TYPE_CHECKING:
    from gfgw_prod.features.bank_cache import BankCache


class FeatureBank(RowTable):
    """``N`` feature rows of width ``dim``, of unit norm once encoded."""

    def __init__(self, total: int, dim: int, world: World):
        super().__init__(total, (dim,), world)
        self.dim = dim

    @torch.no_grad()
    def encode(
        self,
        table: Table,
        extractor: nn.Module,
        encode_rows: int,
        on_block: Callable[[int], None],
        cache: BankCache | None = None,
    ) -> None:
        """Encode this rank's rows, ``encode_rows`` at once, or read them from the cache.

        ``on_block`` gets the number of rows done after every block.
        """
        for first in range(self.start, self.end, self.block_rows):
            number, last = first // self.block_rows, min(first + self.block_rows, self.end)
            rows = self.local[first - self.start : last - self.start]
            if cache is not None and (found := cache.read(number, rows)) is not None:
                rows.copy_(found)
                on_block(last - self.start)
                continue
            # Encoding blocks start at multiples of encode_rows, also outside this rank's rows.
            for begin in range(first // encode_rows * encode_rows, last, encode_rows):
                images = table.rows(torch.arange(begin, min(begin + encode_rows, self.total)))
                features = extractor(images.to(self.world.device)).float()
                low, high = max(begin, first), min(begin + encode_rows, last)
                rows[low - first : high - first] = features[low - begin : high - begin]
                on_block(high - self.start)
            if cache is not None:
                cache.write(number, rows)

    def take_rows(self, earlier: FeatureBank | None) -> bool:
        """Take this rank's rows from ranks that had them when the bank was spread over other ranks. Collective.

        Args:
            earlier: what this rank had then, if anything.

        Returns:
            Whether somebody had them all.
        """
        has_all = True
        spans = self.world.all_gather_object((0, 0) if earlier is None else (earlier.start, earlier.end))
        for first in range(0, self.total, self.block_rows):
            last = min(first + self.block_rows, self.total)
            taker = first // self.most_local
            givers = [rank for rank, (start, end) in enumerate(spans) if start <= first and last <= end]
            giver = taker if taker in givers else givers[taker % len(givers)] if givers else None
            is_taker, is_giver = self.world.rank == taker, self.world.rank == giver
            room = self.local[first - self.start : last - self.start] if is_taker else None
            found = earlier.local[first - earlier.start : last - earlier.start] if is_giver and earlier else None
            if room is not None and found is not None:
                room.copy_(found)
            elif room is not None and giver is not None:
                self.world.receive(room, giver)
            elif found is not None:
                self.world.send(found, taker)
            has_all &= giver is not None or not is_taker
        return has_all
