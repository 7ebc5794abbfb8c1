"""Feature spaces in which sets of images are compared.

No weights are downloaded: figures are compared across runs, so they must come from known files.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfgw_prod.features.extractors import DINOV2, DINOV2_SIDE, IMAGENET_MEAN, IMAGENET_STD, load_dinov2
from gfgw_prod.process.exit_codes import UserError, one_line
from gfgw_prod.settings.evaluation import SpaceName
from gfgw_prod.weights import published
from gfgw_prod.weights.digest import weights_digest

if TYPE_CHECKING:
    from gfgw_prod.settings.config import Config

DINOV2_LARGE = "vit_large_patch14_dinov2.lvd142m"
NETWORKS: tuple[SpaceName, ...] = ("inception", "dinov2", "dinov2-small")
INCEPTION_FILE = published.INCEPTION.file


class Space(nn.Module):
    """Maps images of 256 levels, uint8 ``(n, c, h, w)``, to rows ``(n, dim)``, float32."""

    dim: int

    def digest(self) -> str | None:
        """SHA-256 of the weights, if any; figures are comparable only where it is equal."""
        tensors = self.state_dict()
        return weights_digest(tensors) if tensors else None


class Pixels(Space):
    """Raw pixels in [-1, 1], for tiny images."""

    def __init__(self, image_shape: tuple[int, int, int]):
        super().__init__()
        self.dim = image_shape[0] * image_shape[1] * image_shape[2]

    def forward(self, levels: Tensor) -> Tensor:
        return levels.flatten(1).float() / 127.5 - 1


class Inception(Space):
    """Pool features ``(n, 2048)`` of FID's Inception-v3: torch-fidelity's port, which resizes to 299 pixels.

    Raises:
        UserError: if the file does not hold the weights.
    """

    def __init__(self, file: Path):
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.dim = 2048
        try:
            # The library unpickles the file, which could run code in it. So it gets one with nothing but the tensors.
            tensors, checked = torch.load(file, weights_only=True, map_location="cpu"), io.BytesIO()
            torch.save(tensors, checked)
            checked.seek(0)
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], cast(Any, checked))
        except Exception as error:
            reason = one_line(error, 200)
            raise UserError(f"evaluation.inception {file} is not torch-fidelity's {INCEPTION_FILE}: {reason}") from None

    def forward(self, levels: Tensor) -> Tensor:
        features: Tensor = self.network(levels.expand(-1, 3, -1, -1))[0]
        return features


class Dinov2(Space):
    """Class token of a DINOv2 network at 224 pixels, as in FD-DINOv2 (Stein et al. 2023).

    Args:
        backbone: timm's model without a head, for images of 224 pixels.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.dim = int(cast(Any, backbone).num_features)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, levels: Tensor) -> Tensor:
        images = levels.expand(-1, 3, -1, -1).float() / 255
        images = F.interpolate(images, (DINOV2_SIDE, DINOV2_SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        features: Tensor = self.backbone((images - self.mean) / self.std)
        return features


@dataclass(frozen=True)
class Files:
    """Weight files that were named; ``None`` means the cache of torch or of the hub.

    Attributes:
        inception: torch-fidelity's file.
        dinov2: timm's ViT-L/14.
        dinov2_small: timm's ViT-S/14, which runs are trained with.
        gone: files that the run used and that no longer exist.
    """

    inception: Path | None = None
    dinov2: Path | None = None
    dinov2_small: Path | None = None
    gone: Mapping[SpaceName, Path] = field(default_factory=dict)

    @classmethod
    def now(cls, recorded: Files, given: Files) -> Files:
        """The files given, else those recorded by the run that still exist."""
        used = {name: recorded.named(name)[1] for name in NETWORKS if given.named(name)[1] is None}
        gone = {name: file for name, file in used.items() if file is not None and not os.path.isfile(file)}
        found = {name: given.named(name)[1] or (None if name in gone else used[name]) for name in NETWORKS}
        return cls(found["inception"], found["dinov2"], found["dinov2-small"], gone)

    def named(self, space: SpaceName) -> tuple[str, Path | None]:
        """The setting of a space's weight file, and the file it names."""
        return {
            "inception": ("evaluation.inception", self.inception),
            "dinov2": ("evaluation.dinov2", self.dinov2),
            "dinov2-small": ("features.weights", self.dinov2_small),
        }[space]

    def find(self, space: SpaceName) -> Path | None:
        """The weight file of a space: the one named, else a cached one."""
        _, named = self.named(space)
        return named or _cached(space)

    def has(self, space: SpaceName) -> bool:
        """Whether a space needs no weights or its file was found."""
        return space == "pixels" or self.find(space) is not None

    def wanted(self, space: SpaceName) -> str:
        """Advice: which file to put where."""
        setting, _ = self.named(space)
        setting += f" (evaluate --{space})"
        lost = f"the run's own {self.gone[space]} is gone; " if space in self.gone else ""
        if space == "inception":
            return f"{lost}put torch-fidelity's {INCEPTION_FILE} into {_hub_directory()} or name it as {setting}"
        return f"{lost}name the model.safetensors of timm's {_vit_name(space)} as {setting}"


def build_space(
    space: SpaceName,
    files: Files,
    image_shape: tuple[int, int, int],
    log: Callable[[str], None] = lambda line: None,
) -> Space:
    """Build a feature space with frozen weights.

    Args:
        log: gets a line if a named file is not the published one.

    Raises:
        UserError: if the weights are missing, damaged or of another network.
    """
    if space == "pixels":
        return Pixels(image_shape)
    file, (setting, given) = files.find(space), files.named(space)
    if file is None:
        raise UserError(f"the weights of {space} are missing; {files.wanted(space)}")
    if not os.path.isfile(file):
        raise UserError(f"{setting}: no file {file}; {files.wanted(space)}")
    if space == "dinov2":  # no hash of it is published
        return Dinov2(load_dinov2(DINOV2_LARGE, file, setting))
    weights = published.INCEPTION if space == "inception" else published.DINOV2
    with published.verify(weights, file, log, user_given=given is not None):
        if space == "inception":
            return Inception(file)
        return Dinov2(load_dinov2(DINOV2, file, setting))


def trained_with(config: Config) -> SpaceName:
    """The space of a run's feature extractor."""
    return "dinov2-small" if config.features.extractor == "dinov2" else "pixels"


def _vit_name(space: SpaceName) -> str:
    return DINOV2_LARGE if space == "dinov2" else DINOV2


def _hub_directory() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _cached(space: SpaceName) -> Path | None:
    if space == "inception":
        return published.INCEPTION.cached()
    if space == "dinov2-small":
        return published.DINOV2.cached()
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(f"timm/{DINOV2_LARGE}", "model.safetensors")
    return Path(found) if isinstance(found, str) else None
