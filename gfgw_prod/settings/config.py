"""All settings of a run, and checks across sections."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gfgw_prod.settings.data import DataSettings
from gfgw_prod.settings.evaluation import EvaluationSettings
from gfgw_prod.settings.networks import FeatureSettings, GeneratorSettings
from gfgw_prod.settings.running import (
    CheckpointSettings,
    DistributedSettings,
    ResilienceSettings,
    RunSettings,
    TelemetrySettings,
)
from gfgw_prod.settings.training import (
    ConsistencySettings,
    EmaSettings,
    LossSettings,
    OptimizerSettings,
    TimeSettings,
    TrainSettings,
)
from gfgw_prod.settings.transport import TransportSettings
from gfgw_prod.settings.types import Whole


class Config(BaseSettings):
    """All settings of a run; the weights are a function of them."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = Field(0, description="seed of all random streams")
    run: RunSettings = Field(RunSettings(), description="directory, device and threads of the run")
    data: DataSettings = Field(DataSettings(), description="data set")
    generator: GeneratorSettings = Field(GeneratorSettings(), description="generator network")
    features: FeatureSettings = Field(FeatureSettings(), description="feature extractor and bank")
    transport: TransportSettings = Field(TransportSettings(), description="coupling of samples and data")
    loss: LossSettings = Field(LossSettings(), description="loss weights")
    time: TimeSettings = Field(TimeSettings(), description="distribution of the training times t")
    consistency: ConsistencySettings = Field(ConsistencySettings(), description="consistency training at t < 1")
    optimizer: OptimizerSettings = Field(OptimizerSettings(), description="AdamW and its learning rate")
    ema: EmaSettings = Field(EmaSettings(), description="exponential moving average of the weights")
    train: TrainSettings = Field(TrainSettings(), description="length, batch and precision of training")
    distributed: DistributedSettings = Field(DistributedSettings(), description="parallelism")
    checkpoint: CheckpointSettings = Field(CheckpointSettings(), description="saving and keeping checkpoints")
    resilience: ResilienceSettings = Field(ResilienceSettings(), description="reaction to faults")
    telemetry: TelemetrySettings = Field(TelemetrySettings(), description="metrics and sample pictures")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="evaluation while training")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **others: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Ignore the environment: a variable named SEED must not change a run."""
        return (init_settings,)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
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
            raise ValueError("generator.correlation needs generator.exact_boundary true; or use 0")
        if (unused := self.data.unused()) is not None:
            raise ValueError(unused)
        if self.features.pixel_constant and self.features.extractor != "pixels":
            raise ValueError("features.pixel_constant needs features.extractor pixels; or use 0")
        if self.distributed.gather_dtype == "bfloat16" and self.train.precision != "bf16":
            raise ValueError("distributed.gather_dtype bfloat16 needs train.precision bf16")
        if self.generator.conditional and self.transport.backend == "pot":
            raise ValueError("transport.backend pot has no classes; use native with generator.conditional true")
        if self.transport.noise_weight and self.features.extractor != "pixels":
            raise ValueError("transport.noise_weight needs features of extractor pixels; or use 0")
        if self.consistency.coupled_by == "noise" and self.features.extractor != "pixels":
            raise ValueError("consistency.coupled_by noise needs features of extractor pixels; or use samples")
        return self

    @property
    def cells(self) -> int:
        """Cells per step, K."""
        return self.train.batch_size // self.train.cell_size

    @property
    def total_steps(self) -> int:
        """Optimisation steps of the run, rounded up."""
        return max(-(-round(self.train.total_kimg * 1000) // self.train.batch_size), 1)
