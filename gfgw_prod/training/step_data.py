"""What a step begins with, what it passes on between its phases, and what it computes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gfgw_prod.data.sources import Table
from gfgw_prod.data.stream import CellRows
from gfgw_prod.distributed.cells import Cell, CellAssignment, Turn
from gfgw_prod.distributed.transfers import to_device
from gfgw_prod.distributed.world import World
from gfgw_prod.telemetry.catalogue import TOTAL_AT_ONE, TOTAL_BEFORE
from gfgw_prod.training.objective import Losses
from gfgw_prod.transport.matching import Match


@dataclass(frozen=True)
class CellInputs:
    """A cell's random draws and the rows that the stream brought it, on the device; row ids on the CPU."""

    ids: Tensor  # (b,)
    noise: Tensor  # (b, c, h, w)
    images: Tensor  # (b, c, h, w)
    labels: Tensor  # (b,)
    flips: Tensor  # (b,), uniform in [0, 1)

    @classmethod
    def draw(cls, cell: Cell, rows: CellRows, table: Table, device: torch.device) -> CellInputs:
        """Draw the noise and flips of a cell."""
        assert rows.cell == cell, "the stream brings the rows of another cell"
        return cls(
            ids=rows.ids,
            noise=cell.normal("noise", table.image_shape, device),
            images=to_device(rows.images, device),
            labels=to_device(rows.labels, device),
            flips=to_device(cell.uniform("flip"), device),
        )


@dataclass(frozen=True)
class StepInputs:
    """Where a step stands in the run, and this rank's cells."""

    step: int
    images_seen: int  # before the step
    one_step: bool  # at t = 1; else at times t < 1
    turns: Sequence[Turn]
    cells: Sequence[CellInputs]  # one per turn


@dataclass(frozen=True)
class Samples:
    """Features of a cell's one-step samples and, if the pass is kept for training, the samples with their graph."""

    features: Tensor  # (b, d), without gradient
    images: Tensor | None = None  # (b, c, h, w), with gradient
    features_with_grad: Tensor | None = None  # (b, d), with gradient


@dataclass(frozen=True)
class StepResult:
    """What ``TrainingStep.compute`` found, on the device. The summed gradient is in the parameters' ``.grad``."""

    step: int
    images_seen: int  # before the step
    one_step: bool  # at t = 1; else at times t < 1
    features: Tensor  # (turns, b, d), generated on this rank
    match: Match
    finite: Tensor  # (), whether all generated features and all that the matcher would learn are finite
    losses: Tensor  # (turns, len(Losses._fields) + 1), of this rank; the last is the correlation of noise and targets
    counts: Tensor  # (turns,), 0 where a short rank repeats a cell
    row_ids: Tensor  # (turns, b), rows of the stream, on the CPU
    gradient_checksums: Tensor  # (turns,), of this rank's own gradients
    gradient_norm: Tensor  # (), of the sum

    @property
    def largest_loss(self) -> Tensor:
        """The largest total loss of this rank's cells, ``()``."""
        return torch.where(self.counts > 0, self.losses[:, 0], 0.0).max()

    def values(self, world: World, assignment: CellAssignment) -> dict[str, float]:
        """Metrics by catalogue tag. Losses are means over all cells. Collective.

        Steps at t = 1 and steps at t < 1 have different terms. Each kind has a curve of its total, and a term that a
        step lacks is left out, or its curve would drop to zero.
        """
        means = assignment.in_cell_order(world.all_gather(self.losses)).double().mean(dim=0).tolist()
        streamed = assignment.in_cell_order(world.all_gather(self.row_ids.to(world.device))).flatten()
        rows = torch.cat([streamed, self.match.rows]).cpu()
        losses = dict(zip(Losses._fields, means[:-1], strict=True))
        return {f"loss/{term}": mean for term, mean in losses.items() if mean or term == "total"} | {
            f"loss/{TOTAL_AT_ONE if self.one_step else TOTAL_BEFORE}": losses["total"],
            "data/batch_crc": zlib.crc32(rows.numpy().astype("<i8").tobytes()),
            "transport/noise_correlation": means[-1],
            "optimizer/gradient_norm": float(self.gradient_norm),
            **self.match.values(),
        }
