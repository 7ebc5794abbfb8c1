"""The memory bank: features of the whole data set, rows spread over ranks by global row id.

Rows are encoded in fixed blocks of the global order, so a row's features are the same bits whichever rank encodes it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.distributed.world import World


class FeatureBank(RowTable):
    """``N`` feature rows of width ``dim``, unit norm once encoded."""

    def __init__(self, total: int, dim: int, world: World):
        super().__init__(total, (dim,), world)
        self.dim = dim

    @torch.no_grad()
    def encode(self, table: Table, extractor: nn.Module, block_rows: int, on_block: Callable[[int], None]) -> None:
        """Fills this rank's rows. ``on_block`` is told after every block how many rows are done."""
        for block in range(self.start // block_rows * block_rows, self.end, block_rows):
            ids = torch.arange(block, min(block + block_rows, self.total))
            features = extractor(table.rows(ids).to(self.world.device)).float()
            low, high = max(block, self.start), min(block + block_rows, self.end)
            self.local[low - self.start : high - self.start] = features[low - block : high - block]
            on_block(high - self.start)
