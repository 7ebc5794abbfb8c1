"""Feature extractors: images in [-1, 1] to unit-norm rows, frozen, with gradient to their input."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfgw_prod.resilience.exit_codes import UserError, one_line

if TYPE_CHECKING:
    from gfgw_prod.config import FeatureSettings

DINOV2 = "vit_small_patch14_dinov2.lvd142m"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PixelFeatures(nn.Module):
    """Flattened pixels scaled to unit norm, ``(n, c, h, w)`` -> ``(n, c h w)``; for tiny images."""

    def __init__(self, image_shape: tuple[int, int, int]):
        super().__init__()
        self.dim = image_shape[0] * image_shape[1] * image_shape[2]

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(images.flatten(1), dim=1)


class Dinov2Features(nn.Module):
    """Class token of DINOv2 ViT-S/14 (Oquab et al. 2023), unit norm, ``(n, 1|3, h, w)`` -> ``(n, 384)``.

    Args:
        backbone: the timm model without head.
        image_size: side to which images are resized, pixels.
    """

    def __init__(self, backbone: nn.Module, image_size: int):
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.image_size = image_size
        self.dim: int = 384
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = images.expand(-1, 3, -1, -1)
        size = (self.image_size, self.image_size)
        images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        features: Tensor = self.backbone(((images + 1) / 2 - self.mean) / self.std)
        return F.normalize(features, dim=1)


def build_extractor(settings: FeatureSettings, image_shape: tuple[int, int, int]) -> PixelFeatures | Dinov2Features:
    """The extractor of the settings, without gradient to its weights.

    Raises:
        UserError: if its weights cannot be reached or do not fit.
    """
    if settings.extractor == "pixels":
        return PixelFeatures(image_shape)
    return Dinov2Features(_dinov2_backbone(settings.weights, settings.image_size), settings.image_size)


def _dinov2_backbone(weights: Path | None, image_size: int) -> nn.Module:
    import timm

    if weights is not None and not os.path.isfile(weights):
        raise UserError(f"features.weights: no file {weights}; it must hold timm's {DINOV2} as .safetensors or .pth")
    if weights is not None:
        # timm resamples position embeddings of a checkpoint file to another image size as it does for its own.
        overlay = {"file": str(weights)}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, of a file that is then refused
                return timm.create_model(
                    DINOV2, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=image_size
                )
        except Exception as error:
            raise UserError(f"features.weights {weights} is not a {DINOV2} file: {one_line(error, 200)}") from None
    hint = "download its model.safetensors and give its path as features.weights"
    if not _is_at_hand():
        raise UserError(f"features.extractor dinov2: the weights of {DINOV2} are neither cached nor reachable; {hint}")
    try:
        return timm.create_model(DINOV2, pretrained=True, num_classes=0, img_size=image_size)
    except Exception as error:  # a download that broke off, a full disk, a damaged cache
        reason = one_line(error, 200)
        raise UserError(f"features.extractor dinov2: {DINOV2} cannot be loaded ({reason}); {hint}") from None


def _is_at_hand() -> bool:
    """Whether the hub's file is cached, or the hub answers. Without this timm retries for a minute, line by line."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    repository, file = f"timm/{DINOV2}", "model.safetensors"
    if isinstance(try_to_load_from_cache(repository, file), str):
        return True
    try:
        get_hf_file_metadata(hf_hub_url(repository, file), timeout=10)
    except Exception:  # the client raises many kinds: offline, refused, no name service, proxy, not found
        return False
    return True
