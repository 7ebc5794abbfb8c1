"""Frozen feature extractors: images in [-1, 1] to unit rows, differentiable in the images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfgw_prod.process.exit_codes import UserError, one_line
from gfgw_prod.weights import published
from gfgw_prod.weights.published import obtain

if TYPE_CHECKING:
    from gfgw_prod.settings.networks import FeatureSettings

DINOV2 = "vit_small_patch14_dinov2.lvd142m"
DINOV2_DIM = 384
DINOV2_PATCH, DINOV2_TRAINED_SIDE, DINOV2_SIDE = 14, 518, 224  # pixels; the last is the input side in evaluation
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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


def feature_dim(settings: FeatureSettings, image_shape: tuple[int, int, int]) -> int:
    """Width of the features, without building the extractor."""
    if settings.extractor == "pixels":
        return math.prod(image_shape) + (settings.pixel_constant > 0)
    return DINOV2_DIM


class Dinov2Features(nn.Module):
    """Class token of DINOv2 ViT-S/14 (Oquab et al. 2023), unit norm, ``(n, 1|3, h, w)`` -> ``(n, 384)``.

    Images are resized to sides of ``image_size`` pixels for timm's model without head, ``backbone``.
    """

    def __init__(self, backbone: nn.Module, image_size: int):
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.image_size = image_size
        self.dim: int = DINOV2_DIM
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = images.expand(-1, 3, -1, -1)
        images = F.interpolate(images, (self.image_size, self.image_size), mode="bilinear", align_corners=False)
        features: Tensor = self.backbone(((images + 1) / 2 - self.mean) / self.std)
        return F.normalize(features, dim=1)


def build_extractor(
    settings: FeatureSettings, image_shape: tuple[int, int, int], log: Callable[[str], None] = lambda line: None
) -> PixelFeatures | Dinov2Features:
    """Build the extractor of the settings; its weights are frozen.

    Raises:
        UserError: if the weights cannot be obtained or do not fit.
    """
    if settings.extractor == "pixels":
        return PixelFeatures(image_shape, settings.pixel_constant)
    with obtain(published.DINOV2, settings.weights, log) as path:
        backbone = load_vit(DINOV2, path, settings.image_size, "features.weights")
    return Dinov2Features(backbone, settings.image_size)


def load_vit(name: str, weights: Path, image_size: int, setting: str) -> nn.Module:
    """Load a timm vision transformer without head, resampled for images of ``image_size`` pixels a side.

    Raises:
        UserError: naming the setting that gave the file, if it does not hold that network.
    """
    import timm

    # A file given as timm's own pretrained weights gets its position embeddings resampled to the image size.
    own: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files that are refused below
            network: nn.Module = timm.create_model(name, num_classes=0, img_size=image_size, **own)
    except Exception as error:
        raise UserError(f"{setting} {weights} is not a {name} file: {one_line(error, 200)}") from None
    return network


def load_dinov2(name: str, weights: Path, setting: str) -> nn.Module:
    """Load a DINOv2 network without head for images of 224 pixels, as its authors' code runs it.

    Position embeddings are resampled from 37 x 37 as in that code: bicubic by a factor of (16 + 0.1) / 37, without
    antialiasing. timm resamples differently; its features give distances that do not compare with published ones.

    Raises:
        UserError: if the file does not hold that network.
    """
    import timm

    tensors = load_vit(name, weights, DINOV2_TRAINED_SIDE, setting).state_dict()
    first, patches = tensors["pos_embed"].split([1, tensors["pos_embed"].shape[1] - 1], dim=1)
    trained, side = DINOV2_TRAINED_SIDE // DINOV2_PATCH, DINOV2_SIDE // DINOV2_PATCH
    grid = patches.unflatten(1, (trained, trained)).permute(0, 3, 1, 2)
    factor = (side + 0.1) / trained
    grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    tensors["pos_embed"] = torch.cat([first, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    with torch.device("meta"):  # skips the initialisation of weights that are replaced
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, img_size=DINOV2_SIDE)
    network.load_state_dict(tensors, assign=True)
    return network
