"""Settings of the times at which the generator is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gfgw_prod.settings.types import (
    Count,
    Decay,
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
    stage2_range: TimeRange = Field((0.0, 1.0), description="range of t afterwards")


class ConsistencySettings(Section):
    stages: Annotated[Whole, Field(ge=0, le=12)] = Field(
        0,
        description="at t < 1, regress on what the generator makes of the same line at a time nearer to the image, "
        "in so many stages that draw the two together; 0 regresses on the image itself",
    )
    kimg: Positive = Field(1000.0, description="length of all stages, kimg; the last one stays")
    ratio: Annotated[Real, Field(gt=1, le=4)] = Field(
        2.0, description="by which the distance of the two times shrinks from one stage to the next"
    )
    huber: Annotated[Real, Field(gt=0, le=1e3)] = Field(
        0.001, description="pseudo-Huber radius per pixel of what is compared, units of [-1, 1] images"
    )
    coupled_by: Literal["samples", "noise"] = Field(
        "samples",
        description="what stands for a slot of such a step in the coupling: its sample, or its noise, a pass less",
    )


class LossSettings(Section):
    flow: Weight = Field(1.0, description="weight of the multi-scale pseudo-Huber regression")
    flow_huber: Annotated[Real, Field(gt=0, le=1e3)] = Field(
        0.03, description="pseudo-Huber radius per pixel, units of [-1, 1] images"
    )
    flow_scales: Annotated[Whole, Field(ge=1, le=16)] = Field(
        2, description="resolutions of the flow loss, each half of the last"
    )
    feature: Weight = Field(0.1, description="weight of 1 - cosine in feature space")
    structure: Weight = Field(0.05, description="weight of the match of distances within a cell")
    energy: Weight = Field(
        0.0, description="weight of the energy distance of a step's samples and targets in feature space, at t = 1"
    )
    lpips: Weight = Field(0.0, description="weight of LPIPS (VGG)")
    consistency: Weight = Field(1.0, description="weight of the regression between two times (consistency.stages)")
    lpips_trunk: UserPath | None = Field(
        None, description="VGG-16 weights file of LPIPS; else torchvision's, cached or fetched"
    )
    boundary: Weight = Field(1.0, description="weight of |G(x, 0) - x|² when the boundary is not exact")


class OptimizerSettings(Section):
    lr: Annotated[Real, Field(gt=0, le=10)] = Field(1e-4, description="peak learning rate of AdamW")
    final_lr_ratio: Fraction = Field(0.0, description="learning rate at the end as a share of the peak")
    warmup_kimg: NonNegative = Field(10.0, description="length of the linear warm-up, kimg")
    decay_kimg: Positive = Field(1000.0, description="where the cosine ends, kimg; independent of train.total_kimg")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="decay of AdamW's moments")
    weight_decay: NonNegative = Field(0.0, description="decoupled weight decay")
    clip_norm: Positive = Field(1.0, description="largest gradient norm")


class EmaSettings(Section):
    halflife_kimg: Positive = Field(500.0, description="half-life of the averaged weights, kimg")
    rampup_ratio: NonNegative = Field(0.05, description="half-life is at most this share of the images seen; 0 is off")


class TrainSettings(Section):
    total_kimg: Kimg = Field(1000.0, description="length of the run, kimg (1,000 images)")
    batch_size: Count = Field(256, description="images per optimisation step over all ranks")
    cell_size: Count = Field(32, description="images per cell, the unit of work and randomness")
    one_step_share: Fraction = Field(
        0.9, description="share of the steps trained at t = 1, evenly spread: one pass generates, matches and regresses"
    )
    kept_passes: Annotated[Whole, Field(ge=0, le=1_000_000)] = Field(
        1, description="cells per rank whose pass at t = 1 waits in memory for its targets; others are passed again"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="arithmetic of the networks: autocast to bf16, or to fp16 with a loss scale"
    )
    compile: bool = Field(False, description="torch.compile the generator's blocks and the extractor")
