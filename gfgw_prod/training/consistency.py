"""Consistency: which nearer time a prediction is compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gfgw_prod.generator.precondition import SIGMA_RANGE
from gfgw_prod.settings.training import ConsistencySettings

SMALLEST = 1e-6  # of noise between two times, which a loss is divided by


def nearer_times(settings: ConsistencySettings, t: Tensor, images_seen: int) -> tuple[Tensor, Tensor]:
    """Times ``r < t`` to be consistent with, and by how much noise they are apart, ``(b,)`` each.

    In noise levels ``σ = t / (1 - t)``: ``r = σ (1 - (1 + 8 sigmoid(-σ)) / q^(1 + stage))``, at least 0, of Easy
    Consistency Tuning (Geng et al. 2024, arXiv:2406.14548). The first stage is nearly the training of a denoiser. The
    second value is ``σ - r``.
    """
    done = images_seen / (settings.kimg * 1000)
    stage = min(math.floor(done * settings.stages), settings.stages - 1)
    sigma = (t / (1 - t)).clamp_max(SIGMA_RANGE[1])  # the network sees no more
    apart = sigma * ((1 + 8 * torch.sigmoid(-sigma)) / settings.ratio ** (1 + stage)).clamp_max(1)
    r = sigma - apart
    return r / (1 + r), apart.clamp_min(SMALLEST)
