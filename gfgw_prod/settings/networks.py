"""Settings of the networks: the generator and the feature extractor."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gfgw_prod.settings.types import Count, Decay, Real, Section, UserPath, Whole


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
        (16,), max_length=16, description="sides (pixels) at which blocks attend"
    )
    dropout: Decay = Field(0.1, description="dropout probability in residual blocks")
    conditional: bool = Field(False, description="condition on class labels")
    exact_boundary: bool = Field(True, description="enforce G(x, 0) = x by construction")
    correlation: Annotated[Real, Field(ge=0, lt=1)] = Field(
        0.0, description="correlation of noise and matched images that the preconditioning assumes; 0 is EDM's"
    )
    channels_last: bool = Field(True, description="lay out images with channels last, which convolutions like better")
    checkpoint_activations: bool = Field(
        False, description="keep the inputs of blocks alone for the backward pass, and compute the rest again"
    )
    pretrained: UserPath | None = Field(
        None, description="network .pkl of EDM, of these settings, to begin a run with; or edm-cifar10-uncond, fetched"
    )


class FeatureSettings(Section):
    extractor: Literal["pixels", "dinov2"] = Field("dinov2", description="feature space of the matching")
    pixel_constant: Annotated[Real, Field(ge=0, le=1e3)] = Field(
        0.0,
        description="pixels: root mean square of pixels at which a constant beside them weighs as much as they do; "
        "0 is none, and images that differ by a factor alone are then the same",
    )
    weights: UserPath | None = Field(
        None, description="DINOv2 weights file (.safetensors or .pth); else the hub's, cached or fetched"
    )
    image_size: Annotated[Whole, Field(ge=14, le=2044, multiple_of=14)] = Field(
        224, description="DINOv2 input side, pixels"
    )
    block_rows: Count = Field(128, description="images encoded at once when the bank is built, rows")
    views: Annotated[Whole, Field(ge=1, le=2)] = Field(
        1, description="2: a bank row is the mean of an image's features and its mirror image's, at unit norm"
    )
    cache: UserPath | None = Field(
        None, description="directory that keeps encoded banks for other runs; null: none is kept"
    )
