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
# The setting that names the weights of each network.
SETTINGS: dict[SpaceName, str] = {
    "inception": "evaluation.inception",
    "dinov2": "evaluation.dinov2",
    "dinov2-small": "features.weights",
}
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
    """Pool features ``(n, 2048)`` of FID's Inception-v3: torch-fidelity's port, which resizes to 299 pixels."""

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
    """Class token of timm's DINOv2 network without a head at 224 pixels, as in FD-DINOv2 (Stein et al. 2023)."""

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
class WeightFiles:
    """Files of weights by space. Where none is named, the caches of torch and the hub are searched."""

    named: Mapping[SpaceName, Path | None] = field(default_factory=dict)
    gone: Mapping[SpaceName, Path] = field(default_factory=dict)  # that the run's settings name, and that do not exist

    @classmethod
    def of_run(cls, config: Config) -> WeightFiles:
        """The files that a run's settings name."""
        e = config.evaluation
        return cls({"inception": e.inception, "dinov2": e.dinov2, "dinov2-small": config.features.weights})

    def replaced_by(self, given: Mapping[SpaceName, Path | None]) -> WeightFiles:
        """The given files, else those named so far that still exist."""
        kept = {space: file for space, file in self.named.items() if file and not given.get(space)}
        gone = {space: file for space, file in kept.items() if not os.path.isfile(file)}
        return WeightFiles({**given, **kept, **dict.fromkeys(gone)}, gone)

    def find(self, space: SpaceName) -> Path | None:
        """The weight file of a space: the one named, else a cached one."""
        return self.named.get(space) or _cached(space)

    def has(self, space: SpaceName) -> bool:
        """Whether a space needs no weights or its file was found."""
        return space == "pixels" or self.find(space) is not None

    def wanted(self, space: SpaceName) -> str:
        """Advice: which file to put where."""
        setting = f"{SETTINGS[space]} (evaluate --{space})"
        lost = f"the run's own {self.gone[space]} is gone; " if space in self.gone else ""
        if space == "inception":
            cache = f"{torch.hub.get_dir()}/checkpoints"
            return f"{lost}put torch-fidelity's {INCEPTION_FILE} into {cache} or name it as {setting}"
        name = DINOV2_LARGE if space == "dinov2" else DINOV2
        return f"{lost}name the model.safetensors of timm's {name} as {setting}"


def build_space(
    space: SpaceName, files: WeightFiles, shape: tuple[int, int, int], log: Callable[[str], None] = lambda line: None
) -> Space:
    """Build a feature space with frozen weights; log if a named file is not the published one.

    Raises:
        UserError: if the weights are missing, damaged or of another network.
    """
    if space == "pixels":
        return Pixels(shape)
    file, setting = files.find(space), SETTINGS[space]
    if file is None:
        raise UserError(f"the weights of {space} are missing; {files.wanted(space)}")
    if not os.path.isfile(file):
        raise UserError(f"{setting}: no file {file}; {files.wanted(space)}")
    if space == "dinov2":  # no hash of it is published
        return Dinov2(load_dinov2(DINOV2_LARGE, file, setting))
    weights = published.INCEPTION if space == "inception" else published.DINOV2
    with published.verify(weights, file, log, user_given=files.named.get(space) is not None):
        if space == "inception":
            return Inception(file)
        return Dinov2(load_dinov2(DINOV2, file, setting))


def trained_with(config: Config) -> SpaceName:
    """The space of a run's feature extractor."""
    return "dinov2-small" if config.features.extractor == "dinov2" else "pixels"


def _cached(space: SpaceName) -> Path | None:
    if space != "dinov2":
        return (published.INCEPTION if space == "inception" else published.DINOV2).cached()
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(f"timm/{DINOV2_LARGE}", "model.safetensors")
    return Path(found) if isinstance(found, str) else None
