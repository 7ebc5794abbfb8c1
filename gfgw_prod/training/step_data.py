"""What a step computed, before it counts."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from gfgw_prod.data.sources import Table
from gfgw_prod.data.stream import CellRows
from gfgw_prod.distributed.cells import Cell, CellAssignment
from gfgw_prod.distributed.world import World
from gfgw_prod.training.objective import Losses
from gfgw_prod.transport.matching import Match


@dataclass(frozen=True)
class StepResult:
    """What a step computed, on the device; its gradient stands in the parameters' ``.grad``."""

    step: int
    images_seen: int  # before it
    terms: Tensor  # (turns, len(Losses._fields)), of this rank
    counts: Tensor  # (turns,), 0 for turns of a short rank
    streamed: Tensor  # (turns, b) row ids, on the CPU
    gradient_norm: Tensor
    finite: Tensor  # whether the generated features were, and what the matcher would learn
    match: Match
    match_seconds: float
    match_bytes: int
    checksums: Tensor  # (turns, 3), of this rank's features, loss terms and gradients, each before it met any other
    schedules: dict[str, float]  # learning rate, epsilon and lambda, by tag of the catalogue

    @property
    def largest_loss(self) -> Tensor:
        """The largest total loss of this rank's cells."""
        return torch.where(self.counts > 0, self.terms[:, 0], 0.0).max()

    def values(self, world: World, assignment: CellAssignment) -> dict[str, float]:
        """Metrics by tag of the catalogue; losses are means over all cells, in the order of cells. Collective.

        A step at t = 1 and one before have different terms. Only those it has are told, or curves would fall to zero.
        """
        means = assignment.in_cell_order(world.all_gather(self.terms)).double().mean(dim=0).tolist()
        streamed = assignment.in_cell_order(world.all_gather(self.streamed.to(world.device))).flatten()
        rows = torch.cat([streamed, self.match.rows]).cpu()
        losses = dict(zip(Losses._fields, means, strict=True))
        return {f"loss/{term}": mean for term, mean in losses.items() if mean or term == "total"} | {
            "data/batch_crc": zlib.crc32(rows.numpy().astype("<i8").tobytes()),
            "optimizer/gradient_norm": float(self.gradient_norm),
            "transport/seconds": self.match_seconds,
            "transport/bytes_sent": self.match_bytes,
            **self.schedules,
            **self.match.values(),
        }


@dataclass(frozen=True)
class Samples:
    """What one pass at ``t = 1`` made of a cell's noise."""

    features: Tensor  # (b, d), without gradient
    images: Tensor | None = None  # (b, c, h, w) with their graph, where the pass waits for its targets
    graded_features: Tensor | None = None  # (b, d), of these images


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
        assert rows.cell == cell, "the stream and the turns must agree"
        return cls(
            ids=rows.ids,
            noise=cell.normal("noise", table.image_shape, device),
            images=rows.images.to(device, non_blocking=True),
            labels=rows.labels.to(device, non_blocking=True),
            flips=cell.uniform("flip", device),
        )
