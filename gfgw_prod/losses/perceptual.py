"""LPIPS with a VGG-16 trunk (Zhang et al. 2018). ``lpips`` ships its linear weights but not the trunk's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfgw_prod.process.exit_codes import UserError, one_line
from gfgw_prod.weights.published import VGG16, obtain

SMALLEST_SIDE = 32  # pixels; VGG halves the side four times


class PerceptualLoss(nn.Module):
    """Mean LPIPS distance of images ``(n, 1|3, h, w)`` in [-1, 1]; images under 32 pixels are enlarged to 32."""

    def __init__(self, metric: nn.Module):
        super().__init__()
        self.metric = metric.eval().requires_grad_(False)

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        distances: Tensor = self.metric(_rgb(predicted), _rgb(target))
        return distances.mean()


def build_perceptual(trunk: Path | None, log: Callable[[str], None] = lambda line: None) -> PerceptualLoss:
    """Build LPIPS with the trunk of a torchvision VGG-16 state dict; by default torchvision's, cached or downloaded.

    Raises:
        UserError: if the trunk cannot be obtained or does not fit.
    """
    import lpips

    with obtain(VGG16, trunk, log) as path:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about files that are refused below
                state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"loss.lpips_trunk {path} is not a weights file: {one_line(error, 200)}") from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips passes deprecated arguments to torchvision
            metric = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        _load_trunk(metric.net, state, path)
    return PerceptualLoss(metric)


def _load_trunk(net: nn.Module, state: dict[str, Any], trunk: Path) -> None:
    """Load VGG's ``features``. lpips splits them into slices but keeps layer numbers, so only the prefix differs."""
    if not isinstance(state, dict):
        raise UserError(f"loss.lpips_trunk {trunk} is not a state dict of torchvision's VGG-16")
    renamed = {}
    for name in net.state_dict():
        source = "features." + name.split(".", 1)[1]
        if source not in state:
            raise UserError(f"loss.lpips_trunk {trunk} has no tensor {source}: not torchvision's VGG-16")
        renamed[name] = state[source]
    try:
        net.load_state_dict(renamed)
    except RuntimeError as error:
        raise UserError(f"loss.lpips_trunk {trunk} does not fit VGG-16: {one_line(error, 200)}") from None


def _rgb(images: Tensor) -> Tensor:
    images = images.expand(-1, 3, -1, -1)
    if min(images.shape[-2:]) < SMALLEST_SIDE:
        images = F.interpolate(images, (SMALLEST_SIDE, SMALLEST_SIDE), mode="bilinear", align_corners=False)
    return images
