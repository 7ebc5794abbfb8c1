"""Settings of training: times, losses, optimiser, averaging, batch."""

from __future__ import annotations

from typing import Literal

from gfgw_prod.settings.types import (
    BelowOne,
    Count,
    Flag,
    Fraction,
    NonNegative,
    Positive,
    Real,
    Section,
    Share,
    TimeRange,
    UserPath,
    Weight,
    Whole,
    setting,
)

PrecisionName = Literal["fp32", "tf32", "bf16", "fp16"]


class TimeSettings(Section):
    """Distribution of the training times t."""

    location: Real = setting(0.0, "location of the logit-Student-t distribution of t", ge=-100, le=100)
    scale: Real = setting(1.0, "scale of the logit-Student-t distribution of t", gt=0, le=100)
    stage1_kimg: NonNegative = setting(0.0, "length of the first stage, kimg")
    stage1_range: TimeRange = setting((0.7, 1.0), "range of t in the first stage")
    stage2_range: TimeRange = setting((0.0, 1.0), "range of t in the second stage")


class ConsistencySettings(Section):
    """Consistency training of the steps at t < 1."""

    stages: Whole = setting(
        0,
        "number of stages of consistency training: a step at t < 1 regresses on the generator's output "
        "at a less noisy time r < t of the same line; each stage halves t - r; 0: it regresses on the image",
        ge=0,
        le=12,
    )
    kimg: Positive = setting(Share(), "length of all stages together, kimg; the last one then continues")
    huber: Real = setting(0.001, "pseudo-Huber radius per pixel, units of [-1, 1] images", gt=0, le=1e3)
    coupled_by: Literal["samples", "noise"] = setting(
        "samples",
        "features that represent a slot of such a step in the coupling: its sample's, or, without "
        "a pass of the generator, its noise's",
    )


class LossSettings(Section):
    """Weights of the loss terms."""

    flow: Weight = setting(1.0, "weight of the multi-scale pseudo-Huber regression")
    flow_huber: Real = setting(0.03, "pseudo-Huber radius per pixel, units of [-1, 1] images", gt=0, le=1e3)
    flow_scales: Whole = setting(2, "number of resolutions of the flow loss, each half the one before", ge=1, le=16)
    feature: Weight = setting(0.1, "weight of 1 - cosine similarity to the target in feature space")
    structure: Weight = setting(0.05, "weight of the difference of pairwise distances of samples and targets in a cell")
    energy: Weight = setting(0.0, "weight of the energy distance of a step's samples and targets at t = 1 (features)")
    lpips: Weight = setting(0.0, "weight of LPIPS (VGG)")
    consistency: Weight = setting(1.0, "weight of the consistency loss (consistency.stages)")
    lpips_trunk: UserPath | None = setting(None, "VGG-16 weights of LPIPS; null: torchvision's, cached or downloaded")

    @property
    def compares_features(self) -> bool:
        """Whether a loss at t = 1 compares features of predicted images."""
        return bool(self.feature or self.structure or self.energy)


class OptimizerSettings(Section):
    """AdamW and its learning rate."""

    lr: Real = setting(1e-3, "peak learning rate of AdamW", gt=0, le=10)
    final_lr_ratio: Fraction = setting(0.0, "final learning rate as a share of the peak")
    warmup_kimg: NonNegative = setting(Share(0.02), "length of the linear warm-up, kimg")
    decay_kimg: Positive = setting(Share(), "end of the cosine decay, kimg")
    betas: tuple[BelowOne, BelowOne] = setting((0.9, 0.999), "decay rates of AdamW's moments")
    weight_decay: NonNegative = setting(0.0, "decoupled weight decay")
    clip_norm: Positive = setting(1.0, "gradient norm above which gradients are scaled down")


class EmaSettings(Section):
    """Exponential moving average of the weights."""

    halflife_kimg: Positive = setting(Share(0.02), "half-life of the averaged weights, kimg")
    rampup_ratio: NonNegative = setting(0.05, "upper limit of the half-life as a share of the images seen; 0: no limit")


class TrainSettings(Section):
    """Length, batch and precision of training."""

    total_kimg: Positive = setting(
        100.0, "length of the run, kimg (1,000 images); lengths of schedules are shares of it where they are not set"
    )
    max_minutes: NonNegative = setting(
        0.0, "longest time of a start, minutes; it then ends in order, and the same command goes on from there; 0: none"
    )
    batch_size: Count = setting(256, "images per optimisation step, over all ranks")
    cell_size: Count = setting(32, "images per cell, the unit of work and randomness")
    one_step_share: Fraction = setting(
        0.9, "share of the steps trained at t = 1, evenly spread; one pass then generates and is trained"
    )
    kept_passes: Whole = setting(
        1, "cells per rank whose pass at t = 1 is kept until it has targets; others are recomputed", ge=0, le=1_000_000
    )
    precision: PrecisionName = setting(
        "fp32",
        "precision of the networks: fp32; tf32 (faster on GPUs); autocast to bf16, or to fp16 with loss scaling",
    )
    profile_steps: Whole = setting(
        0,
        "steps to record for a profiler, after the first two of a start; the trace goes to run.dir/profile",
        ge=0,
        le=1000,
    )
    compile: Flag = setting(False, "torch.compile the generator's blocks and the extractor")
