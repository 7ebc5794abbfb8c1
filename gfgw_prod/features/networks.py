"""Networks of timm without their head: found by name, loaded from a file."""

from __future__ import annotations

import difflib
import inspect
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gfgw_prod.process.exit_codes import UserError, one_line
from gfgw_prod.settings.networks import DINOV2, Pool
from gfgw_prod.weights import published
from gfgw_prod.weights.published import PublishedFile, why_unreadable


@dataclass(frozen=True)
class Network:
    """A network of timm, for square images of ``side`` pixels.

    Args:
        pool: how it pools its features: class token, or mean over places; ``None`` is its default.
        setting: that names it, for messages.

    Raises:
        UserError: from every method, if timm has no such network, or it takes no such side or pool.
    """

    name: str
    side: int
    pool: Pool | None = None
    setting: str = "features.network"

    @property
    def published(self) -> PublishedFile:
        """Its published weights; timm states the hash of none."""
        if self.name == DINOV2:
            return published.DINOV2
        config, title = self._config, f"timm's {self.name}"
        if config.hf_hub_id:
            file = config.hf_hub_filename or "model.safetensors"
            return PublishedFile(title, file=file, sha256="", setting="features.weights", repository=config.hf_hub_id)
        url = str(config.url or "")
        return PublishedFile(title, url.rpartition("/")[2] or "its file", "", "features.weights", url=url)

    @cached_property
    def dim(self) -> int:
        """Width of its features."""
        with torch.device("meta"):
            return int(self.on_meta()(torch.zeros(1, 3, self.side, self.side)).shape[1])

    @property
    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the images in [0, 1] that it was trained on, each ``(1, 3, 1, 1)``."""
        config = self._config
        return torch.tensor(config.mean).view(1, 3, 1, 1), torch.tensor(config.std).view(1, 3, 1, 1)

    def on_meta(self) -> nn.Module:
        """The network on the meta device."""
        with torch.device("meta"):
            return self._create().eval()

    def load(self, weights: Path, setting: str) -> nn.Module:
        """The network with the weights of a file, with position embeddings resampled to the side.

        Raises:
            UserError: naming ``setting``, which gave the file, if it does not hold that network.
        """
        self.on_meta()  # refuses a side or pool, which are no fault of the file
        # A file given as timm's own pretrained weights is renamed and resampled as those are.
        own: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about files that are refused below
                return self._create(**own)
        except Exception as error:
            raise UserError(f"{setting} {weights} is not a {self.name} file: {why_unreadable(error)}") from None

    def _create(self, **own: Any) -> nn.Module:
        import timm

        _ = self._config  # refuses an unknown name
        how: dict[str, Any] = {"num_classes": 0, "global_pool": self.pool}
        try:
            with torch.device("meta"):
                network = timm.create_model(self.name, **how)
            stride = int(cast(Any, network).feature_info[-1]["reduction"])
            if self.side % stride == 0 and "img_size" in inspect.signature(type(network)).parameters:
                how["img_size"] = self.side
        except Exception as error:
            pool = f" with pool {self.pool}" if self.pool else ""
            raise UserError(f"{self.setting} {self.name} cannot be built{pool}: {one_line(error, 200)}") from None
        if self.side % stride:
            wrong = f"{self.name} takes images with a side that is a multiple of {stride}, not {self.side}"
            raise UserError(
                f"{wrong} (features.image_size, timm:NAME@SIDE); use {max(self.side // stride, 1) * stride}"
            )
        created: nn.Module = timm.create_model(self.name, **how, **own)
        return created

    @property
    def _config(self) -> Any:
        from timm import list_pretrained
        from timm.models import get_pretrained_cfg

        try:
            return get_pretrained_cfg(self.name, allow_unregistered=False)
        except RuntimeError:
            near = difflib.get_close_matches(self.name, list_pretrained(), n=1)
            hint = f"did you mean {near[0]}?" if near else "timm.list_pretrained() lists its names"
            raise UserError(f"{self.setting}: timm has no network {self.name[:100]!r}; {hint}") from None


class FrozenNetwork(nn.Module):
    """A network that cannot learn: RGB images in [0, 1] of its side -> features ``(n, dim)``."""

    def __init__(self, network: Network, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.side, self.dim = network.side, network.dim
        self.mean: Tensor
        self.std: Tensor
        mean, std = network.mean_and_std
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @torch.no_grad()
    def fold_scales(self) -> None:
        """Multiply weights of a vision transformer by its layer scales, so that no pass has to multiply by them."""
        from timm.layers.layer_scale import LayerScale
        from timm.models.vision_transformer import Block

        blocks: list[Any] = [module for module in self.backbone.modules() if isinstance(module, Block)]
        for block in blocks:
            for name, last in ("ls1", block.attn.proj), ("ls2", block.mlp.fc2):
                if isinstance(scale := getattr(block, name), LayerScale):
                    last.weight.mul_(scale.gamma[:, None])
                    last.bias.mul_(scale.gamma)
                    setattr(block, name, nn.Identity())

    def normalised(self, images: Tensor) -> Tensor:
        """Features of images in [0, 1] of the right side."""
        features: Tensor = self.backbone((images - self.mean) / self.std)
        return features
