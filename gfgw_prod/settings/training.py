"""Settings of training: times, losses, optimiser, averaging, batch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gfgw_prod.settings.types import (
    Count,
    Decay,
    Flag,
    Fraction,
    Kimg,
    NonNegative,
    Positive,
    Real,
    Section,
    TimeRange,
    UserPath,
    Weight,
    Whole,
)


class TimeSettings(Section):
    """Distribution of the training times t."""

    location: Annotated[Real, Field(ge=-100, le=100)] = Field(
        0.0, description="location of the logit-Student-t distribution of t"
    )
    scale: Annotated[Real, Field(gt=0, le=100)] = Field(
        1.0, description="scale of the logit-Student-t distribution of t"
    )
    freedom: Annotated[Whole, Field(ge=1, le=1000)] = Field(
        4, description="degrees of freedom of the logit-Student-t distribution of t"
    )
    stage1_kimg: NonNegative = Field(10.0, description="length of the first stage, kimg")
    stage1_range: TimeRange = Field((0.7, 1.0), description="range of t in the first stage")
    stage2_range: TimeRange = Field((0.0, 1.0), description="range of t in the second stage")


class ConsistencySettings(Section):
    """Consistency training of the steps at t < 1."""

    stages: Annotated[Whole, Field(ge=0, le=12)] = Field(
        0,
        description="number of stages of consistency training: a step at t < 1 regresses on the generator's output "
        "at an earlier time of the same line, which each stage moves closer to t; 0: regress on the image",
    )
    kimg: Positive = Field(1000.0, description="length of all stages together, kimg; the last one then continues")
    ratio: Annotated[Real, Field(gt=1, le=4)] = Field(
        2.0, description="factor by which the distance between the two times shrinks per stage"
    )
    huber: Annotated[Real, Field(gt=0, le=1e3)] = Field(
        0.001, description="pseudo-Huber radius per pixel of the consistency loss, units of [-1, 1] images"
    )
    coupled_by: Literal["samples", "noise"] = Field(
        "samples",
        description="features that represent a slot of such a step in the coupling: its sample's, or, without "
        "a pass of the generator, its noise's",
    )


class LossSettings(Section):
    """Weights of the loss terms."""

    flow: Weight = Field(1.0, description="weight of the multi-scale pseudo-Huber regression")
    flow_huber: Annotated[Real, Field(gt=0, le=1e3)] = Field(
        0.03, description="pseudo-Huber radius per pixel, units of [-1, 1] images"
    )
    flow_scales: Annotated[Whole, Field(ge=1, le=16)] = Field(
        2, description="number of resolutions of the flow loss, each half the one before"
    )
    feature: Weight = Field(0.1, description="weight of 1 - cosine similarity to the target in feature space")
    structure: Weight = Field(
        0.05, description="weight of the difference between pairwise distances of samples and of targets in a cell"
    )
    energy: Weight = Field(
        0.0, description="weight of the energy distance between a step's samples and targets in feature space, at t = 1"
    )
    lpips: Weight = Field(0.0, description="weight of LPIPS (VGG)")
    consistency: Weight = Field(1.0, description="weight of the consistency loss (consistency.stages)")
    lpips_trunk: UserPath | None = Field(
        None, description="VGG-16 weights file of LPIPS; null: torchvision's, cached or downloaded"
    )
    boundary: Weight = Field(1.0, description="weight of |G(x, 0) - x|² when the boundary is not exact")


class OptimizerSettings(Section):
    """AdamW and its learning rate."""

    lr: Annotated[Real, Field(gt=0, le=10)] = Field(1e-4, description="peak learning rate of AdamW")
    final_lr_ratio: Fraction = Field(0.0, description="final learning rate as a share of the peak")
    warmup_kimg: NonNegative = Field(10.0, description="length of the linear warm-up, kimg")
    decay_kimg: Positive = Field(1000.0, description="end of the cosine decay, kimg; independent of train.total_kimg")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="decay rates of AdamW's moments")
    weight_decay: NonNegative = Field(0.0, description="decoupled weight decay")
    clip_norm: Positive = Field(1.0, description="gradient norm above which gradients are scaled down")


class EmaSettings(Section):
    """Exponential moving average of the weights."""

    halflife_kimg: Positive = Field(500.0, description="half-life of the averaged weights, kimg")
    rampup_ratio: NonNegative = Field(
        0.05, description="upper limit of the half-life as a share of the images seen; 0: no limit"
    )


class TrainSettings(Section):
    """Length, batch and precision of training."""

    total_kimg: Kimg = Field(1000.0, description="length of the run, kimg (1,000 images)")
    batch_size: Count = Field(256, description="images per optimisation step, over all ranks")
    cell_size: Count = Field(32, description="images per cell, the unit of work and randomness")
    one_step_share: Fraction = Field(
        0.9,
        description="share of the steps trained at t = 1, evenly spread; one pass then generates and is trained",
    )
    kept_passes: Annotated[Whole, Field(ge=0, le=1_000_000)] = Field(
        1,
        description="cells per rank whose pass at t = 1 is kept until it has targets; others are recomputed",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="precision of the networks: autocast to bf16, or to fp16 with loss scaling"
    )
    compile: Flag = Field(False, description="torch.compile the generator's blocks and the extractor")
