"""Feature spaces in which sets of images are compared.

No weights are downloaded: figures are compared across runs, so they must come from known files.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfgw_prod.distributed.cells import random_stream
from gfgw_prod.features.networks import FrozenNetwork, Network
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.evaluation import TIMM_SPACE, SpaceName
from gfgw_prod.settings.networks import Pool
from gfgw_prod.weights import published
from gfgw_prod.weights.digest import weights_digest
from gfgw_prod.weights.published import PublishedFile, why_unreadable

if TYPE_CHECKING:
    from gfgw_prod.settings.config import Config

PIXELS, PROJECTED_PIXELS = "pixels", "projected-pixels"
MOST_PIXELS, PROJECTIONS = 4096, 1024  # numbers in an image whose pixels are compared raw; and of the others
DINOV2_LARGE = "vit_large_patch14_dinov2.lvd142m"
DINOV2_PATCH, DINOV2_TRAINED_SIDE, DINOV2_SIDE = 14, 518, 224  # pixels; the last is the input side in evaluation
INCEPTION_FILE = published.INCEPTION.file


class Space(nn.Module):
    """Maps images of 256 levels, uint8 ``(n, c, h, w)``, to rows ``(n, dim)``, float32."""

    dim: int

    def digest(self) -> str | None:
        """SHA-256 of the weights, if any; figures are comparable only where it is equal."""
        tensors = self.state_dict()
        return weights_digest(tensors) if tensors else None


class Pixels(Space):
    """Raw pixels in [-1, 1], for small images."""

    def __init__(self, image_shape: tuple[int, int, int]):
        super().__init__()
        self.dim = math.prod(image_shape)

    def forward(self, levels: Tensor) -> Tensor:
        return levels.flatten(1).float() / 127.5 - 1


class ProjectedPixels(Pixels):
    """Random projections of the pixels, the same for all images of a shape, which keep distances on average."""

    def __init__(self, image_shape: tuple[int, int, int]):
        super().__init__(image_shape)
        numbers, self.dim = self.dim, PROJECTIONS
        drawn = torch.randn(numbers, self.dim, generator=random_stream(0, "projections"))
        self.register_buffer("directions", drawn / self.dim**0.5, persistent=False)
        self.directions: Tensor

    def forward(self, levels: Tensor) -> Tensor:
        return super().forward(levels) @ self.directions


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
            reason = why_unreadable(error)
            raise UserError(f"evaluation.inception {file} is not torch-fidelity's {INCEPTION_FILE}: {reason}") from None

    def forward(self, levels: Tensor) -> Tensor:
        features: Tensor = self.network(levels.expand(-1, 3, -1, -1))[0]
        return features


class NetworkSpace(FrozenNetwork, Space):
    """Features of a network of timm, of images resized to its side as in FD-DINOv2 (Stein et al. 2023)."""

    def forward(self, levels: Tensor) -> Tensor:
        images = levels.expand(-1, 3, -1, -1).float() / 255
        images = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        return self.normalised(images)


def network_of(space: SpaceName) -> Network | None:
    """The network of timm that a space names, if it does."""
    if (named := TIMM_SPACE.fullmatch(space)) is None:
        return None
    return Network(named["name"], int(named["side"]), cast(Pool | None, named["pool"]), "features")


@dataclass(frozen=True)
class WeightFiles:
    """Files of weights by space, without its side. Where none is named, caches of torch and the hub are searched."""

    named: Mapping[SpaceName, Path | None] = field(default_factory=dict)
    gone: Mapping[SpaceName, Path] = field(default_factory=dict)  # that the run's settings name, and that do not exist

    @classmethod
    def of_run(cls, config: Config) -> WeightFiles:
        """The files that a run's settings name."""
        e = config.evaluation
        own = {_without_side(trained_with(config)): config.features.weights}
        other = {_without_side(e.features): e.weights} if e.weights else {}
        return cls({"inception": e.inception, "dinov2": e.dinov2, **own, **other})

    def replaced_by(self, given: Mapping[SpaceName, Path | None]) -> WeightFiles:
        """The given files, else those named so far that still exist."""
        given = {_without_side(space): file for space, file in given.items()}
        kept = {space: file for space, file in self.named.items() if file and not given.get(space)}
        gone = {space: file for space, file in kept.items() if not os.path.isfile(file)}
        return WeightFiles({**given, **kept, **dict.fromkeys(gone)}, gone)

    def find(self, space: SpaceName) -> Path | None:
        """The weight file of a space: the one named, else a cached one."""
        return self.named.get(_without_side(space)) or published_file(space).cached()

    def has(self, space: SpaceName) -> bool:
        """Whether a space needs no weights or its file was found."""
        return space in (PIXELS, PROJECTED_PIXELS) or self.find(space) is not None

    def wanted(self, space: SpaceName) -> str:
        """Advice: which file to put where."""
        file = published_file(space)
        gone = self.gone.get(_without_side(space))
        lost = f"the run's own {gone} is gone; " if gone else ""
        if space == "inception":
            cache = f"{torch.hub.get_dir()}/checkpoints"
            return f"{lost}put {file.file} of {file.title} into {cache} or name it as {file.setting}"
        return f"{lost}name {file.file} of {file.title} as {file.setting}"


def published_file(space: SpaceName) -> PublishedFile:
    """The published weights of a space, with the setting and option that name another file."""
    if (network := network_of(space)) is not None:
        return replace(network.published, setting="evaluation.weights (evaluate --weights)")
    if space == "inception":
        return replace(published.INCEPTION, setting="evaluation.inception (evaluate --inception)")
    large = Network(DINOV2_LARGE, DINOV2_SIDE)
    return replace(large.published, setting="evaluation.dinov2 (evaluate --dinov2)")


def build_space(
    space: SpaceName, files: WeightFiles, shape: tuple[int, int, int], log: Callable[[str], None] = lambda line: None
) -> Space:
    """Build a feature space with frozen weights; log if a named file is not the published one.

    Raises:
        UserError: if the weights are missing, damaged or of another network.
    """
    if space in (PIXELS, PROJECTED_PIXELS):
        return Pixels(shape) if space == PIXELS else ProjectedPixels(shape)
    file, known = files.find(space), published_file(space)
    if file is None:
        raise UserError(f"the weights of {space} are missing; {files.wanted(space)}")
    user_given = files.named.get(_without_side(space)) is not None
    with published.verify(known, file, log, user_given=user_given):
        if space == "inception":
            return Inception(file)
        if (network := network_of(space)) is not None:
            return NetworkSpace(network, network.load(file, known.setting))
        return NetworkSpace(Network(DINOV2_LARGE, DINOV2_SIDE), load_dinov2(DINOV2_LARGE, file, known.setting))


def trained_with(config: Config) -> SpaceName:
    """The space of a run's feature extractor."""
    features = config.features
    if (name := features.timm_network) is None:
        return PIXELS
    return f"timm:{name}{f':{features.pool}' if features.pool else ''}@{features.image_size}"


def load_dinov2(name: str, weights: Path, setting: str) -> nn.Module:
    """Load a DINOv2 network without head for images of 224 pixels, as its authors' code runs it.

    Position embeddings are resampled from 37 x 37 as in that code: bicubic by a factor of (16 + 0.1) / 37, without
    antialiasing. timm resamples differently; its features give distances that do not compare with published ones.

    Raises:
        UserError: if the file does not hold that network.
    """
    tensors = Network(name, DINOV2_TRAINED_SIDE).load(weights, setting).state_dict()
    first, patches = tensors["pos_embed"].split([1, tensors["pos_embed"].shape[1] - 1], dim=1)
    trained, side = DINOV2_TRAINED_SIDE // DINOV2_PATCH, DINOV2_SIDE // DINOV2_PATCH
    grid = patches.unflatten(1, (trained, trained)).permute(0, 3, 1, 2)
    factor = (side + 0.1) / trained
    grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    tensors["pos_embed"] = torch.cat([first, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    network = Network(name, DINOV2_SIDE).on_meta()  # skips the initialisation of weights that are replaced
    network.load_state_dict(tensors, assign=True)
    return network


def _without_side(space: SpaceName) -> str:
    return space.partition("@")[0]
