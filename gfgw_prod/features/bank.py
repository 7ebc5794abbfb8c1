"""The feature bank: features of the whole data set, sharded over ranks by global row id.

Rows are encoded in fixed blocks of the global order, so a row's features are the same bits on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        *,
        views: int = 1,
        cache: BankCache | None = None,
    ) -> None:
        """Encode this rank's rows, ``encode_rows`` at once, or read them from the cache.

        Args:
            on_block: called after every block with the number of rows done.
            views: 1, or 2 for the mean of the features of an image and of its mirror image, scaled to unit norm.
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
                features = _encoded(table, extractor, begin, min(begin + encode_rows, self.total), views, self.world)
                low, high = max(begin, first), min(begin + encode_rows, last)
                rows[low - first : high - first] = features[low - begin : high - begin]
                on_block(high - self.start)
            if cache is not None:
                cache.write(number, rows)


def _encoded(table: Table, extractor: nn.Module, begin: int, end: int, views: int, world: World) -> Tensor:
    """Features ``(end - begin, d)`` of images ``begin`` to ``end``."""
    images = table.rows(torch.arange(begin, end)).to(world.device)
    features: Tensor = extractor(images).float()
    if views == 2:
        features = F.normalize(features + extractor(images.flip(-1)).float(), dim=1)
    return features
