"""Random weights of the frozen networks, in files of their published formats."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import vgg

from gfgw_prod.settings.networks import DINOV2


def draw_frozen(directory: Path) -> tuple[Path, Path]:
    """Write a DINOv2 ViT-S/14 and the convolutions of a VGG-16; return the files."""
    dinov2, trunk = directory / "dinov2.safetensors", directory / "vgg16.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = timm.create_model(DINOV2, pretrained=False, num_classes=0, img_size=224)
        for name, parameter in backbone.named_parameters():
            if name.endswith("gamma"):  # random values would block the image
                nn.init.constant_(parameter, 1.0)
        save_file(backbone.state_dict(), dinov2)
        layers = vgg.make_layers(vgg.cfgs["D"], batch_norm=False).state_dict()
        torch.save({f"features.{name}": tensor for name, tensor in layers.items()}, trunk)
    return dinov2, trunk
