"""Every setting: typed, with its unit, default and range."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gfgw_prod.setting_types import (
    Count,
    Decay,
    Epsilon,
    Fraction,
    Kimg,
    NonNegative,
    Place,
    Positive,
    Real,
    Section,
    Text,
    TimeRange,
    Weight,
    Whole,
)


class RunSettings(Section):
    dir: Place = Field(Path("runs/default"), description="run directory; launching it again resumes it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute; auto takes a GPU if present")
    threads: Annotated[Whole, Field(ge=1, le=1024)] = Field(
        1, description="intra-op CPU threads per rank (part of the arithmetic)"
    )
    allow_changes: bool = Field(
        False, description="go on with a run although settings, data or packages have changed; recorded in the run"
    )


class DataSettings(Section):
    source: Literal["digits", "cifar10"] = Field("digits", description="data set")
    path: Place | None = Field(None, description="directory of the data set (cifar10: holds or receives its archive)")
    download: bool = Field(True, description="fetch a missing archive where there is a network")
    flip: bool = Field(False, description="mirror targets at random; matching and feature losses see them unmirrored")


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
    pretrained: Place | None = Field(None, description="network .pkl of EDM to begin a run with, of these settings")


class FeatureSettings(Section):
    extractor: Literal["pixels", "dinov2"] = Field("dinov2", description="feature space of the matching")
    weights: Place | None = Field(
        None, description="DINOv2 weights file (.safetensors or .pth); else timm's cache or hub"
    )
    image_size: Annotated[Whole, Field(ge=14, le=2044, multiple_of=14)] = Field(
        224, description="DINOv2 input side, pixels"
    )
    block_rows: Count = Field(128, description="images encoded at once when the bank is built, rows")


class TransportSettings(Section):
    scope: Literal["subset", "full"] = Field("subset", description="couple to drawn bank rows or to the whole bank")
    subset_rows: Count = Field(2048, description="bank rows drawn per step in subset scope, rows")
    backend: Literal["native", "pot"] = Field("native", description="solver")
    target: Literal["argmax", "sample", "barycentric", "independent"] = Field(
        "argmax", description="how a row of the plan names its target; independent ignores the plan"
    )
    structure_weight: Fraction = Field(0.1, description="lambda, weight of the Gromov-Wasserstein term, at the start")
    structure_weight_end: Fraction = Field(0.5, description="lambda at the end of its linear rise")
    structure_weight_kimg: NonNegative = Field(1600.0, description="length of the rise of lambda, kimg")
    epsilon: Epsilon = Field(0.1, description="entropic regularisation at the start, units of the cost")
    epsilon_end: Epsilon = Field(0.01, description="entropic regularisation at the end of its exponential decay")
    epsilon_kimg: NonNegative = Field(1600.0, description="length of the decay of epsilon, kimg")
    outer_iterations: Count = Field(10, description="most linearisations per step; annealing's come before")
    inner_iterations: Count = Field(200, description="most Sinkhorn iterations per linearisation")
    iterations: Literal["adaptive", "fixed"] = Field(
        "adaptive", description="stop at the tolerance, or make all iterations without a look at any value"
    )
    tolerance: Annotated[Real, Field(gt=0, le=2)] = Field(
        1e-3, description="L1 marginal error and relative error of S at which to stop"
    )
    geometry: Literal["cosine", "euclidean"] = Field(
        "cosine", description="distance of features; euclidean is dense, for subset scope"
    )
    marginal: Literal["balanced", "semi_relaxed"] = Field(
        "balanced", description="bank rows share the mass evenly, or as it comes"
    )
    dual: Literal["fresh", "persistent"] = Field(
        "fresh", description="find the bank's potential in every batch, or keep it and correct it from step to step"
    )
    dual_balance: Fraction = Field(
        0.95, description="how far a batch's own marginal is enforced from a persistent potential: 1 fully, 0 not"
    )
    dual_epochs: Positive = Field(0.25, description="length of a persistent potential's memory, epochs")
    anneal_from: Epsilon | None = Field(
        None, description="larger epsilon at which each coupling begins, halved per linearisation; off if null"
    )

    @model_validator(mode="after")
    def _can_be_solved(self) -> Self:
        if self.geometry == "euclidean" and self.scope == "full":
            raise ValueError("geometry euclidean needs dense distances; use scope subset")
        if self.dual == "persistent" and self.geometry != "cosine":
            raise ValueError("dual persistent keeps a state of geometry cosine; use that, or dual fresh")
        if self.dual == "persistent" and (self.marginal == "semi_relaxed" or self.anneal_from is not None):
            raise ValueError("dual persistent goes with marginal balanced and without anneal_from")
        plain = (self.marginal, self.dual, self.iterations, self.anneal_from)
        if self.backend == "pot" and plain != ("balanced", "fresh", "adaptive", None):
            raise ValueError("backend pot is balanced, fresh, adaptive and without anneal_from; use native")
        return self


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
    lpips: Weight = Field(0.0, description="weight of LPIPS (VGG)")
    lpips_trunk: Place | None = Field(None, description="VGG-16 weights file of LPIPS; else torchvision's cache or hub")
    boundary: Weight = Field(1.0, description="weight of |G(x, 0) - x|² when the boundary is not exact")


class TimeSettings(Section):
    one_step_share: Fraction = Field(0.25, description="share of slots trained at t = 1, where samples are made")
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


class DistributedSettings(Section):
    strategy: Literal["ddp", "fsdp"] = Field("ddp", description="replicate or shard the generator over ranks")
    reduction: Literal["exact", "fast"] = Field(
        "exact", description="exact sums gradients in one order for every number of ranks; fast is a plain all-reduce"
    )
    timeout_seconds: Annotated[Whole, Field(ge=1, le=10_000_000)] = Field(
        600, description="longest wait for the other ranks, seconds"
    )


class CheckpointSettings(Section):
    every_kimg: Positive = Field(100.0, description="interval between checkpoints, kimg")
    keep: Count = Field(3, description="checkpoints kept, newest first")
    keep_every_kimg: NonNegative = Field(
        0.0, description="one checkpoint for each multiple of this stays for good, kimg; 0 is off"
    )
    root: Text = Field("", description="directory or fsspec URL of the checkpoints; empty is run.dir/checkpoints")
    upload_to: Text = Field("", description="directory or fsspec URL that they are copied to in the background")
    max_failures: Count = Field(3, description="saves in a row that may fail before the run ends with 76")


class ResilienceSettings(Section):
    hang_seconds: Annotated[Real, Field(gt=0, le=86400)] = Field(
        600.0,
        description="seconds without progress after which a rank writes its stacks and ends; more than any step takes",
    )
    max_no_progress: Count = Field(5, description="restarts without a new checkpoint after which the run ends with 76")
    audit_every_steps: Annotated[Whole, Field(ge=0, le=1_000_000_000)] = Field(
        1000, description="interval between steps that are computed twice and compared; 0 is off"
    )
    spike_factor: Annotated[Real, Field(gt=1, le=1e9)] = Field(
        100.0, description="gradient norm or loss over its running median at which a step is suspect"
    )
    skips_before_rollback: Count = Field(
        5, description="bad steps in a row after which the run goes back to a checkpoint; a second time ends it"
    )
    straggler_ratio: Annotated[Real, Field(gt=1, le=1e9)] = Field(
        1.5, description="a rank's time per step over the median of all ranks at which it is named"
    )


class TelemetrySettings(Section):
    log_every_kimg: Positive = Field(1.0, description="interval between metric records, kimg")
    samples_every_kimg: Positive = Field(50.0, description="interval between sample grids, kimg")
    frechet_samples: Annotated[Whole, Field(ge=0, le=1_000_000)] = Field(
        0, description="samples behind the raw-pixel Fréchet distance printed at the end; 0 is off (tiny images only)"
    )
    sample_grid: Annotated[Whole, Field(ge=1, le=32)] = Field(10, description="images along a side of the sample grid")
    prometheus_port: Annotated[Whole, Field(ge=0, le=65535)] = Field(
        0, description="TCP port of metrics and probes, on every node; 0 is off"
    )
    prometheus_address: Text = Field("127.0.0.1", min_length=1, description="address that port is opened on")
    progress: Literal["auto", "bar", "plain", "off"] = Field(
        "auto", description="auto is a bar in a terminal, else lines"
    )


class Config(BaseSettings):
    """A run, whole: the weights are a function of these settings."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = Field(0, description="seed of every random stream")
    run: RunSettings = Field(RunSettings(), description="where and on what")
    data: DataSettings = Field(DataSettings(), description="images")
    generator: GeneratorSettings = Field(GeneratorSettings(), description="the U-Net")
    features: FeatureSettings = Field(FeatureSettings(), description="feature space and bank")
    transport: TransportSettings = Field(TransportSettings(), description="the coupling")
    loss: LossSettings = Field(LossSettings(), description="the objective")
    time: TimeSettings = Field(TimeSettings(), description="distribution of t")
    optimizer: OptimizerSettings = Field(OptimizerSettings(), description="the update")
    ema: EmaSettings = Field(EmaSettings(), description="averaged weights")
    train: TrainSettings = Field(TrainSettings(), description="length and batch")
    distributed: DistributedSettings = Field(DistributedSettings(), description="ranks")
    checkpoint: CheckpointSettings = Field(CheckpointSettings(), description="restartable state")
    resilience: ResilienceSettings = Field(ResilienceSettings(), description="faults")
    telemetry: TelemetrySettings = Field(TelemetrySettings(), description="metrics and pictures")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing but the file and the command line: an environment variable named SEED must not change a run."""
        return (init_settings,)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.train.batch_size % self.train.cell_size:
            raise ValueError(
                f"train.batch_size ({self.train.batch_size}) must be a multiple of "
                f"train.cell_size ({self.train.cell_size})"
            )
        for name in ("stage1_range", "stage2_range"):
            low, high = getattr(self.time, name)
            if low >= high:
                raise ValueError(f"time.{name} must be an increasing pair, not {low}, {high}")
        if self.telemetry.frechet_samples == 1:
            raise ValueError("telemetry.frechet_samples must be 0 or at least 2")
        if self.generator.conditional and self.transport.backend == "pot":
            raise ValueError("transport.backend pot knows no classes; use native with generator.conditional true")
        return self

    @property
    def cells(self) -> int:
        """Cells per step, K."""
        return self.train.batch_size // self.train.cell_size

    @property
    def total_steps(self) -> int:
        """Optimisation steps of the whole run, rounded up."""
        return max(-(-round(self.train.total_kimg * 1000) // self.train.batch_size), 1)
