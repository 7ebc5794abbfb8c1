"""LPIPS with the VGG-16 trunk (Zhang et al. 2018): its linear weights ship with ``lpips``, the trunk's do not."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfgw_prod.resilience.exit_codes import UserError, one_line

SMALLEST_SIDE = 32  # VGG halves the side four times before the last feature map of LPIPS


class PerceptualLoss(nn.Module):
    """Mean LPIPS distance of images ``(n, 1|3, h, w)`` in [-1, 1]; images under 32 pixels are enlarged to 32."""

    def __init__(self, metric: nn.Module):
        super().__init__()
        self.metric = metric.eval().requires_grad_(False)

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        distances: Tensor = self.metric(_rgb(predicted), _rgb(target))
        return distances.mean()


def build_perceptual(trunk: Path | None) -> PerceptualLoss:
    """LPIPS with a trunk from ``trunk`` (a torchvision VGG-16 state dict) or else from torchvision's cache or hub.

    Raises:
        UserError: if the trunk cannot be reached or does not fit.
    """
    import lpips
    import torchvision

    weights = torchvision.models.VGG16_Weights.IMAGENET1K_V1
    file_name = Path(weights.url).name
    if trunk is not None and not os.path.isfile(trunk):
        raise UserError(f"loss.lpips_trunk: no file {trunk}; it must hold torchvision's {file_name}")
    try:
        if trunk is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a file that is then refused
                state = torch.load(trunk, map_location="cpu", weights_only=True)
        else:
            # torch announces the download, in one of these places.
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                state = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        reason = one_line(error, 200)
        raise UserError(
            f"loss.lpips {'' if trunk is None else f'trunk {trunk} '}cannot load VGG-16 weights ({reason}); "
            f"download torchvision's {file_name} and give its path as loss.lpips_trunk, or set loss.lpips 0"
        ) from None
    except Exception as error:
        raise UserError(f"loss.lpips_trunk {trunk} is not a weights file: {one_line(error, 200)}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips builds its trunk with torchvision's old arguments
        metric = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    _load_trunk(metric.net, state, trunk)
    return PerceptualLoss(metric)


def _load_trunk(net: nn.Module, state: dict[str, Any], trunk: Path | None) -> None:
    """lpips cuts VGG's ``features`` into slices and keeps their layer numbers, so keys differ only in their prefix."""
    if not isinstance(state, dict):
        raise UserError(f"loss.lpips_trunk {trunk} holds no state dict: not torchvision's VGG-16")
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
