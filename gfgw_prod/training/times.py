"""The times at which a step trains the generator, and nearer times to be consistent with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gfgw_prod.distributed.cells import Cell
from gfgw_prod.generator.precondition import SIGMA_RANGE
from gfgw_prod.settings.schedule import time_range
from gfgw_prod.settings.training import ConsistencySettings, TimeSettings

FREEDOM = 4  # degrees of freedom of the distribution of t
RATIO = 2.0  # by which each stage of consistency divides the distance between the two times
SMALLEST = 1e-6  # of noise between two times, which a loss is divided by


def draw_times(settings: TimeSettings, cell: Cell, images_seen: int) -> Tensor:
    """Times ``(b,)``, logit-Student-t over the range of the stage, on the CPU."""
    low, high = time_range(settings, images_seen)
    stream = cell.stream("time")
    normal = torch.randn(cell.size, generator=stream)
    chi_square = torch.randn(cell.size, FREEDOM, generator=stream).square().sum(dim=1)
    student = normal / (chi_square / FREEDOM).sqrt()
    return low + (high - low) * torch.sigmoid(settings.location + settings.scale * student)


def nearer_times(settings: ConsistencySettings, t: Tensor, images_seen: int) -> tuple[Tensor, Tensor]:
    """Times nearer to the data than ``t (b,)``, and the gap between their noise levels, ``(b,)`` each.

    With noise levels ``σ = t / (1 - t)``: ``σ_near = σ (1 - (1 + 8 sigmoid(-σ)) / q^(1 + stage))``, at least 0, as in
    Easy Consistency Tuning (Geng et al. 2024, arXiv:2406.14548). The first stage is nearly the training of a denoiser.
    """
    done = images_seen / (settings.kimg * 1000)
    stage = min(math.floor(done * settings.stages), settings.stages - 1)
    sigma = (t / (1 - t)).clamp_max(SIGMA_RANGE[1])  # the network sees no more
    gap = sigma * ((1 + 8 * torch.sigmoid(-sigma)) / RATIO ** (1 + stage)).clamp_max(1)
    sigma_near = sigma - gap
    return sigma_near / (1 + sigma_near), gap.clamp_min(SMALLEST)
