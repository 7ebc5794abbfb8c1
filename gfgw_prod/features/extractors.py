"""Frozen feature extractors: images in [-1, 1] to unit rows, differentiable in the images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfgw_prod.features.networks import FrozenNetwork, Network
from gfgw_prod.weights.published import obtain

if TYPE_CHECKING:
    from gfgw_prod.settings.networks import FeatureSettings


class PixelFeatures(nn.Module):
    """Flattened pixels scaled to unit norm, ``(n, c, h, w)`` -> ``(n, c h w)``; for tiny images.

    Args:
        constant: if not 0, append a constant coordinate before the scaling: the norm of an image whose pixels have this
            root mean square. Without it, images that differ only by a factor have equal features.
    """

    def __init__(self, image_shape: tuple[int, int, int], constant: float = 0.0):
        super().__init__()
        self.dim = math.prod(image_shape) + (constant > 0)
        self._constant = constant * math.sqrt(math.prod(image_shape))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        if self._constant:
            pixels = F.pad(pixels, (0, 1), value=self._constant)
        return F.normalize(pixels, dim=1)


class NetworkFeatures(FrozenNetwork):
    """Features of a network of timm, unit norm, ``(n, 1|3, h, w)`` -> ``(n, dim)``; images are resized to its side."""

    def __init__(self, network: Network, backbone: nn.Module):
        super().__init__(network, backbone)
        self._resizings: dict[tuple[int, torch.device], Tensor] = {}
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", 0.5 / self.std, persistent=False)
        self.register_buffer("shift", (0.5 - self.mean) / self.std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = images.expand(-1, 3, -1, -1)
        if images.is_cuda and not torch.compiler.is_compiling():
            return F.normalize(self.backbone(self._prepared_on_gpu(images)), dim=1)
        images = F.interpolate(images, (self.side, self.side), mode="bilinear", align_corners=False)
        return F.normalize(self.normalised((images + 1) / 2), dim=1)

    def _prepared_on_gpu(self, images: Tensor) -> Tensor:
        """Images resized and normalised. The gradient of ``F.interpolate``, in a fixed order, takes a sort on a GPU."""
        with torch.autocast(images.device.type, enabled=False):
            rows, columns = (self._resizing(size, images.device) for size in images.shape[-2:])
            return torch.addcmul(self.shift, rows @ images @ columns.T, self.scale)

    def _resizing(self, size: int, device: torch.device) -> Tensor:
        """Bilinear interpolation of ``size`` pixels to ``side``, a matrix ``(side, size)``."""
        if (size, device) not in self._resizings:
            pixels = torch.eye(size)[None, None]
            found = F.interpolate(pixels, (self.side, size), mode="bilinear", align_corners=False)[0, 0]
            self._resizings[size, device] = found.to(device)
        return self._resizings[size, device]


def network_of(settings: FeatureSettings) -> Network | None:
    """The network of the settings, if the extractor is one."""
    name = settings.timm_network
    return None if name is None else Network(name, settings.image_size, settings.pool)


def feature_dim(settings: FeatureSettings, image_shape: tuple[int, int, int]) -> int:
    """Width of the features, without building the extractor."""
    if (network := network_of(settings)) is not None:
        return network.dim
    return math.prod(image_shape) + (settings.pixel_constant > 0)


def build_extractor(
    settings: FeatureSettings, image_shape: tuple[int, int, int], log: Callable[[str], None] = lambda line: None
) -> PixelFeatures | NetworkFeatures:
    """Build the extractor of the settings; its weights are frozen.

    Raises:
        UserError: if the network is unknown, or its weights cannot be obtained or do not fit.
    """
    if (network := network_of(settings)) is None:
        return PixelFeatures(image_shape, settings.pixel_constant)
    with obtain(network.published, settings.weights, log) as path:
        return NetworkFeatures(network, network.load(path, "features.weights"))
