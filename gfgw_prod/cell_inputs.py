"""What a cell begins with: its random draws, and the rows that the stream brings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gfgw_prod.data.sources import Table
from gfgw_prod.data.stream import CellRows
from gfgw_prod.distributed.cells import Cell


@dataclass(frozen=True)
class CellInputs:
    """A cell's random draws and streamed rows, on the device, and the rows' ids, on the CPU."""

    ids: Tensor  # (b,)
    noise: Tensor  # (b, c, h, w)
    images: Tensor  # (b, c, h, w), from the stream
    labels: Tensor  # (b,)
    flips: Tensor  # (b,) uniform

    @classmethod
    def draw(cls, cell: Cell, rows: CellRows, table: Table, device: torch.device) -> CellInputs:
        assert rows.cell == cell, "the stream and the rounds must agree"
        return cls(
            ids=rows.ids,
            noise=cell.normal("noise", table.image_shape, device),
            images=rows.images.to(device, non_blocking=True),
            labels=rows.labels.to(device, non_blocking=True),
            flips=cell.uniform("flip", device),
        )
