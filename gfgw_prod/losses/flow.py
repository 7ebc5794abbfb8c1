"""Regression onto the target image: multi-scale pseudo-Huber (Song and Dhariwal 2023, arXiv:2310.14189, eq. 8)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from gfgw_prod.process.exit_codes import UserError


def flow_loss(predicted: Tensor, target: Tensor, *, huber: float, scales: int) -> Tensor:
    """Mean of ``flow_distances`` over images."""
    return flow_distances(predicted, target, huber=huber, scales=scales).mean()


def flow_distances(predicted: Tensor, target: Tensor, *, huber: float, scales: int) -> Tensor:
    """Pseudo-Huber distance of each image, ``(n,)``, averaged over resolutions.

    At each of ``scales`` resolutions, each half the last by averaging: ``√(|e|² / d + huber²) - huber`` for an error
    ``e`` of ``d`` values.
    """
    error = predicted - target
    total = error.new_zeros(len(error))
    for scale in range(scales):
        if scale:
            error = F.avg_pool2d(error, 2)
        mean_square = error.flatten(1).square().mean(dim=1)
        total = total + (mean_square + huber**2).sqrt() - huber
    return total / scales


def check_scales(scales: int, image_shape: tuple[int, int, int]) -> None:
    """Raise ``UserError`` if an image cannot be halved ``scales - 1`` times."""
    most = int(math.log2(min(image_shape[1:]))) + 1
    if scales > most:
        raise UserError(f"loss.flow_scales should be at most {most} for {image_shape[-1]}-pixel images")
