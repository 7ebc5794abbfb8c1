"""Settings of the networks: the generator and the feature extractor."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gfgw_prod.settings.types import BelowOne, Count, Flag, Real, Section, Text, UserPath, Whole, setting

DINOV2 = "vit_small_patch14_dinov2.lvd142m"  # of timm
Pool = Literal["token", "avg"]


class GeneratorSettings(Section):
    model_channels: Whole = setting(16, "channels at the highest resolution", ge=2, le=4096, multiple_of=2)
    channel_mult: tuple[Annotated[Whole, Field(ge=1, le=64)], ...] = setting(
        (1, 2),
        "channels per level as multiples of model_channels; each level halves the side",
        min_length=1,
        max_length=16,
    )
    channel_mult_emb: Whole = setting(4, "width of the embedding as a multiple of model_channels", ge=1, le=64)
    num_blocks: Whole = setting(1, "residual blocks per level", ge=1, le=64)
    attention_resolutions: tuple[Count, ...] = setting((), "image sides with self-attention, pixels", max_length=16)
    dropout: BelowOne = setting(0.0, "dropout probability in residual blocks")
    conditional: Flag = setting(False, "condition on class labels")
    correlation: Real = setting(
        0.0, "correlation of noise and matched images that the preconditioning assumes; 0 is EDM's", ge=0, lt=1
    )
    channels_last: Flag = setting(
        True, "store activations with channels last: convolutions are faster on GPUs, normalisations slower on CPUs"
    )
    checkpoint_activations: Flag = setting(
        False, "keep only inputs of blocks for the backward pass; recompute the rest"
    )
    pretrained: UserPath | None = setting(
        None, "EDM network .pkl with these settings to start from; edm-cifar10-uncond fetches the published one"
    )


class FeatureSettings(Section):
    extractor: Literal["pixels", "timm", "dinov2"] = setting(
        "pixels", f"feature space of the matching: raw pixels, or a network of timm; dinov2 is its {DINOV2}"
    )
    pixel_constant: Real = setting(
        0.0,
        "pixels: append a constant that equals the pixels in norm if their root mean square is this; "
        "0 is none, and images that differ only by a factor then have the same features",
        ge=0,
        le=1e3,
    )
    network: Text | None = setting(None, "timm: the network's name, with its tag, as in timm.list_pretrained()")
    pool: Pool | None = setting(
        None, "features of a network: class token, or mean over places; null: the network's default"
    )
    weights: UserPath | None = setting(
        None, "the network's weights (.safetensors or .pth); null: the hub's, cached or fetched"
    )
    image_size: Whole = setting(224, "input side of the network, pixels", ge=8, le=2048)
    block_rows: Count = setting(128, "images encoded per batch when the bank is built, rows")
    cache: UserPath | None = setting(None, "directory that caches encoded banks for other runs; null is off")

    @property
    def timm_network(self) -> str | None:
        """Name of the network, if the extractor is one."""
        return {"timm": self.network, "dinov2": DINOV2}.get(self.extractor)
