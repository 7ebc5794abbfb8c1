"""How much of the data set is used as targets."""

from __future__ import annotations

import torch
from torch import Tensor

from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.distributed.world import World


class Usage:
    """When each row of the bank was last a target, in images seen."""

    def __init__(self, total: int, world: World):
        self.total = total
        self.last = RowTable(total, (), world, dtype=torch.int64)

    def mark(self, rows: Tensor, images: int) -> None:
        """Mark row ids ``(B,)``, possibly repeated, as targets of the step that ends at ``images > 0`` images seen."""
        self.last.write(rows, torch.full_like(rows, images))

    def share(self, images: int) -> float:
        """Share of the rows that were targets within the last ``N`` images. Collective."""
        recent = (self.last.local > max(images - self.total, 0)).sum()
        return float(self.last.world.all_reduce_sum(recent)) / self.total

    def state(self) -> Tensor:
        """The tensor to checkpoint."""
        return self.last.state()
