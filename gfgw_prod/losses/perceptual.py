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
from gfgw_prod.weights.published import VGG16, obtain, why_unreadable

SMALLEST_SIDE = 32  # pixels; VGG halves the side four times
SMALLEST_NORM = 1e-10  # added by ``lpips`` to norms


class PerceptualLoss(nn.Module):
    """Mean LPIPS distance of images ``(n, 1|3, h, w)`` in [-1, 1]; images under 32 pixels are enlarged to 32."""

    def __init__(self, metric: nn.Module):
        super().__init__()
        self.metric = metric.eval().requires_grad_(False)

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        predicted, target = _rgb(predicted), _rgb(target)
        if predicted.is_cuda:
            return self._fused(predicted, target)
        distances: Tensor = self.metric(predicted, target)
        return distances.mean()

    def _fused(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The mean distance ``()``, without gradient in the targets: the same formula in half of the launches."""
        metric: Any = self.metric
        first, second = (metric.net(metric.scaling_layer(images)) for images in (predicted, target))
        weights = [next(layer.parameters()) for layer in metric.lins]  # in float32, also where casts are used
        distance: Tensor = _Distance.apply(*first, *second, *weights)  # type: ignore[no-untyped-call]
        return distance


class _Distance(torch.autograd.Function):
    """Sum over layers of the mean over images and places of ``Σ_c w_c (a_c / |a| - b_c / |b|)²``.

    Called with the features ``a`` of all layers, then ``b``, ``(n, c, h, w)`` each, then their ``w (1, c, 1, 1)``. Only
    ``a`` has a gradient.
    """

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        layers, found, saved = len(tensors) // 3, [], []
        with torch.autocast(tensors[0].device.type, enabled=False):
            for a, b, weight in zip(tensors[:layers], tensors[layers:-layers], tensors[-layers:], strict=True):
                norm, norm_b = (
                    torch.linalg.vector_norm(each, dim=1, keepdim=True, dtype=torch.float32).add_(SMALLEST_NORM)
                    for each in (a, b)
                )
                unit = a / norm  # in float32, as the norm is
                apart = unit - b / norm_b
                slope = apart * (weight * (2 / a[:, 0].numel()))  # derivative by ``unit``
                found.append((apart * slope).sum())
                saved += [unit, norm, slope]
        ctx.save_for_backward(*saved)
        ctx.dtype = tensors[0].dtype
        return torch.stack(found).sum() / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        saved, found = ctx.saved_tensors, []
        for unit, norm, slope in zip(saved[::3], saved[1::3], saved[2::3], strict=True):
            along = (slope * unit).sum(dim=1, keepdim=True)  # what is along the vector does not turn it
            found.append((torch.addcmul(slope, unit, along, value=-1) / norm * gradient).to(ctx.dtype))
        return *found, *[None] * (2 * len(found))


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
            raise UserError(f"loss.lpips_trunk {path} is not a weights file: {why_unreadable(error)}") from None
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
