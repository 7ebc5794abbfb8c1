"""The times at which a step trains the generator."""

from __future__ import annotations

import torch
from torch import Tensor

from gfgw_prod.distributed.cells import Cell
from gfgw_prod.settings.schedule import time_range
from gfgw_prod.settings.training import TimeSettings


def is_one_step(share: float, step: int) -> bool:
    """Whether a step's cells are trained at ``t = 1``: a share of all steps, evenly spread.

    All cells of a step are alike, so that no rank waits for another that has a pass more to make.
    """
    return int((step + 1) * share) > int(step * share)


def draw_times(settings: TimeSettings, cell: Cell, images_seen: int) -> Tensor:
    """Times ``(b,)``, logit-Student-t over the range of the stage, on the CPU."""
    low, high = time_range(settings, images_seen)
    stream = cell.stream("time")
    normal = torch.randn(cell.size, generator=stream)
    chi_square = torch.randn(cell.size, settings.freedom, generator=stream).square().sum(dim=1)
    student = normal / (chi_square / settings.freedom).sqrt()
    return low + (high - low) * torch.sigmoid(settings.location + settings.scale * student)
