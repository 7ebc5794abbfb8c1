"""Every setting: typed, with its unit, default and range."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gfgw_prod.data.settings import DataSettings
from gfgw_prod.evaluation.names import FEWEST, MOST, Features, Metric
from gfgw_prod.setting_types import (
    Count,
    Decay,
    Fraction,
    Kimg,
    NonNegative,
    Place,
    Positive,
    Real,
    Section,
    Text,
    Weight,
    Whole,
)
from gfgw_prod.time_settings import ConsistencySettings, TimeSettings
from gfgw_prod.transport.settings import TransportSettings


class RunSettings(Section):
    dir: Place = Field(Path("runs/default"), description="run directory; launching it again resumes it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute; auto takes a GPU if present")
    threads: Annotated[Whole, Field(ge=1, le=1024)] = Field(
        1, description="intra-op CPU threads per rank (part of the arithmetic)"
    )
    allow_changes: bool = Field(
        False, description="go on with a run although settings, data or packages have changed; recorded in the run"
    )


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
    pretrained: Place | None = Field(
        None, description="network .pkl of EDM, of these settings, to begin a run with; or edm-cifar10-uncond, fetched"
    )


class FeatureSettings(Section):
    extractor: Literal["pixels", "dinov2"] = Field("dinov2", description="feature space of the matching")
    pixel_constant: Annotated[Real, Field(ge=0, le=1e3)] = Field(
        0.0,
        description="pixels: root mean square of pixels at which a constant beside them weighs as much as they do; "
        "0 is none, and images that differ by a factor alone are then the same",
    )
    weights: Place | None = Field(
        None, description="DINOv2 weights file (.safetensors or .pth); else the hub's, cached or fetched"
    )
    image_size: Annotated[Whole, Field(ge=14, le=2044, multiple_of=14)] = Field(
        224, description="DINOv2 input side, pixels"
    )
    block_rows: Count = Field(128, description="images encoded at once when the bank is built, rows")
    views: Annotated[Whole, Field(ge=1, le=2)] = Field(
        1, description="2: a bank row is the mean of an image's features and its mirror image's, at unit norm"
    )
    cache: Place | None = Field(
        None, description="directory that keeps encoded banks for other runs; null: none is kept"
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
    lpips_trunk: Place | None = Field(
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


class DistributedSettings(Section):
    strategy: Literal["ddp", "fsdp"] = Field("ddp", description="replicate or shard the generator over ranks")
    reduction: Literal["exact", "fast"] = Field(
        "exact", description="exact sums gradients in one order for every number of ranks; fast is a plain all-reduce"
    )
    shard_ranks: Annotated[Whole, Field(ge=0, le=1_000_000)] = Field(
        0, description="neighbouring ranks that share one copy of the generator under fsdp (HSDP); 0 is all"
    )
    sync_each_turn: bool = Field(
        False, description="under fsdp, gradients of several turns cross one by one and no rank keeps a whole one"
    )
    gather_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="weights as fsdp sends them for a pass; bfloat16, half as much, needs train.precision bf16",
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
    sample_grid: Annotated[Whole, Field(ge=1, le=32)] = Field(10, description="images along a side of the sample grid")
    prometheus_port: Annotated[Whole, Field(ge=0, le=65535)] = Field(
        0, description="TCP port of metrics and probes, on every node; 0 is off"
    )
    prometheus_address: Text = Field("127.0.0.1", min_length=1, description="address that port is opened on")
    progress: Literal["auto", "bar", "plain", "off"] = Field(
        "auto", description="auto is a bar in a terminal, else lines"
    )


class EvaluationSettings(Section):
    every_kimg: NonNegative = Field(
        0.0, description="interval between evaluations while training, kimg, and one at the end; 0 is off"
    )
    num: Annotated[Whole, Field(ge=FEWEST, le=MOST)] = Field(5000, description="samples of an evaluation")
    metrics: tuple[Metric, ...] = Field(
        ("fd", "kid", "pr", "coverage", "memorisation"), min_length=1, description="what is measured"
    )
    features: Features = Field("auto", description="space of fd, kid, pr, coverage, memorisation; auto: the run's own")
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = Field(0, description="seed of the samples that are measured")
    inception: Place | None = Field(None, description="torch-fidelity's Inception weights; else torch's cache")
    dinov2: Place | None = Field(None, description="DINOv2 ViT-L/14 weights of fd-dinov2; else the hub's cache")


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
    consistency: ConsistencySettings = Field(ConsistencySettings(), description="what a step before t = 1 regresses on")
    optimizer: OptimizerSettings = Field(OptimizerSettings(), description="the update")
    ema: EmaSettings = Field(EmaSettings(), description="averaged weights")
    train: TrainSettings = Field(TrainSettings(), description="length and batch")
    distributed: DistributedSettings = Field(DistributedSettings(), description="ranks")
    checkpoint: CheckpointSettings = Field(CheckpointSettings(), description="restartable state")
    resilience: ResilienceSettings = Field(ResilienceSettings(), description="faults")
    telemetry: TelemetrySettings = Field(TelemetrySettings(), description="metrics and pictures")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="how good samples are")

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
        if self.generator.correlation and not self.generator.exact_boundary:
            raise ValueError("generator.correlation is of the exact boundary's preconditioning; use that, or 0")
        if (unread := self.data.unread()) is not None:
            raise ValueError(unread)
        if self.features.pixel_constant and self.features.extractor != "pixels":
            raise ValueError("features.pixel_constant is of extractor pixels; use that, or 0")
        if self.distributed.gather_dtype == "bfloat16" and self.train.precision != "bf16":
            raise ValueError("distributed.gather_dtype bfloat16 needs train.precision bf16")
        if self.generator.conditional and self.transport.backend == "pot":
            raise ValueError("transport.backend pot knows no classes; use native with generator.conditional true")
        if self.transport.noise_weight and self.features.extractor != "pixels":
            raise ValueError("transport.noise_weight compares noise with features of extractor pixels; use that, or 0")
        if self.consistency.coupled_by == "noise" and self.features.extractor != "pixels":
            raise ValueError("consistency.coupled_by noise is for features of extractor pixels; use that, or samples")
        return self

    @property
    def cells(self) -> int:
        """Cells per step, K."""
        return self.train.batch_size // self.train.cell_size

    @property
    def total_steps(self) -> int:
        """Optimisation steps of the whole run, rounded up."""
        return max(-(-round(self.train.total_kimg * 1000) // self.train.batch_size), 1)
