"""Settings of the networks: the generator and the feature extractor."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gfgw_prod.settings.types import Count, Decay, Flag, Real, Section, UserPath, Whole


class GeneratorSettings(Section):
    model_channels: Annotated[Whole, Field(ge=2, le=4096, multiple_of=2)] = Field(
        128, description="channels at the highest resolution"
    )
    channel_mult: tuple[Annotated[Whole, Field(ge=1, le=64)], ...] = Field(
        (1, 2, 2, 2),
        min_length=1,
        max_length=16,
        description="channels per level as multiples of model_channels; each level halves the side",
    )
    channel_mult_emb: Annotated[Whole, Field(ge=1, le=64)] = Field(
        4, description="width of the embedding as a multiple of model_channels"
    )
    num_blocks: Annotated[Whole, Field(ge=1, le=64)] = Field(4, description="residual blocks per level")
    attention_resolutions: tuple[Count, ...] = Field(
        (16,), max_length=16, description="image sides at which blocks have self-attention, pixels"
    )
    dropout: Decay = Field(0.1, description="dropout probability in residual blocks")
    conditional: Flag = Field(False, description="condition on class labels")
    exact_boundary: Flag = Field(True, description="enforce G(x, 0) = x by construction")
    correlation: Annotated[Real, Field(ge=0, lt=1)] = Field(
        0.0, description="correlation of noise and matched images that the preconditioning assumes; 0 is EDM's"
    )
    channels_last: Flag = Field(
        True, description="store activations with channels last, which makes convolutions faster"
    )
    checkpoint_activations: Flag = Field(
        False, description="keep only the inputs of blocks for the backward pass, and recompute the rest"
    )
    pretrained: UserPath | None = Field(
        None,
        description="EDM network .pkl with these settings to start from; edm-cifar10-uncond fetches the published one",
    )


class FeatureSettings(Section):
    extractor: Literal["pixels", "dinov2"] = Field("dinov2", description="feature space of the matching")
    pixel_constant: Annotated[Real, Field(ge=0, le=1e3)] = Field(
        0.0,
        description="pixels: append a constant that equals the pixels in norm if their root mean square is this; "
        "0 is none, and images that differ only by a factor then have the same features",
    )
    weights: UserPath | None = Field(
        None, description="DINOv2 weights file (.safetensors or .pth); null: the hub's, cached or fetched"
    )
    image_size: Annotated[Whole, Field(ge=14, le=2044, multiple_of=14)] = Field(
        224, description="DINOv2 input side, pixels"
    )
    block_rows: Count = Field(128, description="images encoded per batch when the bank is built, rows")
    views: Annotated[Whole, Field(ge=1, le=2)] = Field(
        1, description="2: a bank row is the normalised mean of the features of an image and its mirror image"
    )
    cache: UserPath | None = Field(None, description="directory that caches encoded banks for other runs; null is off")
