"""All settings of a run, and checks across sections."""

from __future__ import annotations

from typing import Any, Self

from pydantic import model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gfgw_prod.settings import running, training
from gfgw_prod.settings.data import DataSettings
from gfgw_prod.settings.evaluation import EvaluationSettings
from gfgw_prod.settings.networks import FeatureSettings, GeneratorSettings
from gfgw_prod.settings.transport import TransportSettings
from gfgw_prod.settings.types import Section, Share, Whole, setting


class Config(BaseSettings):
    """All settings of a run; the weights are a function of them."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: Whole = setting(0, "seed of all random streams", ge=0, lt=2**63)
    run: running.RunSettings = setting(running.RunSettings(), "directory, device and threads of the run")
    data: DataSettings = setting(DataSettings(), "data set")
    generator: GeneratorSettings = setting(GeneratorSettings(), "generator network")
    features: FeatureSettings = setting(FeatureSettings(), "feature extractor and bank")
    transport: TransportSettings = setting(TransportSettings(), "coupling of samples and data")
    loss: training.LossSettings = setting(training.LossSettings(), "loss weights")
    time: training.TimeSettings = setting(training.TimeSettings(), "distribution of the training times t")
    consistency: training.ConsistencySettings = setting(training.ConsistencySettings(), "consistency training at t < 1")
    optimizer: training.OptimizerSettings = setting(training.OptimizerSettings(), "AdamW and its learning rate")
    ema: training.EmaSettings = setting(training.EmaSettings(), "exponential moving average of the weights")
    train: training.TrainSettings = setting(training.TrainSettings(), "length, batch and precision of training")
    distributed: running.DistributedSettings = setting(running.DistributedSettings(), "parallelism")
    checkpoint: running.CheckpointSettings = setting(running.CheckpointSettings(), "saving and keeping checkpoints")
    resilience: running.ResilienceSettings = setting(running.ResilienceSettings(), "reaction to faults")
    telemetry: running.TelemetrySettings = setting(running.TelemetrySettings(), "metrics and sample pictures")
    evaluation: EvaluationSettings = setting(EvaluationSettings(), "evaluation while training")

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **others: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Ignore the environment: a variable named SEED must not change a run."""
        return (init_settings,)

    @model_validator(mode="after")
    def _resolve_shares(self) -> Self:
        for section, shares in shares_by_section().items():
            own = getattr(self, section)
            lengths = {name: getattr(own, name) for name in shares}
            resolved = {n: v.of_total * self.train.total_kimg for n, v in lengths.items() if isinstance(v, Share)}
            self.__dict__[section] = own.model_copy(update=resolved)
        return self

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.train.batch_size % self.train.cell_size:
            sizes = f"train.batch_size ({self.train.batch_size}) must be a multiple of train.cell_size"
            raise ValueError(f"{sizes} ({self.train.cell_size})")
        for name in ("stage1_range", "stage2_range"):
            low, high = getattr(self.time, name)
            if low >= high:
                raise ValueError(f"time.{name} must be an increasing pair, not {low}, {high}")
        if (unused := self.data.unused()) is not None:
            raise ValueError(unused)
        if (self.features.extractor == "timm") != (self.features.network is not None):
            raise ValueError("features.extractor timm and features.network, the name of a network, go together")
        if self.distributed.gather_dtype == "bfloat16" and self.train.precision != "bf16":
            raise ValueError("distributed.gather_dtype bfloat16 needs train.precision bf16")
        if self.generator.conditional and self.transport.backend == "pot":
            raise ValueError("transport.backend pot has no classes; use native with generator.conditional true")
        of_pixels = {  # settings that compare noise or a constant with pixels, and their values without that
            "features.pixel_constant 0": self.features.pixel_constant,
            "transport.noise_weight 0": self.transport.noise_weight,
            "transport.dual fresh or persistent": self.transport.is_fitted,
            "consistency.coupled_by samples": self.consistency.coupled_by == "noise",
        }
        if self.features.extractor != "pixels" and any(of_pixels.values()):
            needed = " and ".join(value for value, differs in of_pixels.items() if differs)
            raise ValueError(f"features.extractor {self.features.extractor} needs {needed}")
        return self

    @property
    def cells(self) -> int:
        """Cells per step, K."""
        return self.train.batch_size // self.train.cell_size

    @property
    def compiles_alone(self) -> bool:
        """Whether a new rank compiles its networks before it meets the others. A sharded generator is made by all."""
        return self.train.compile and self.distributed.strategy == "ddp"

    @property
    def couples_by_noise(self) -> bool:
        """Whether a step of consistency knows its targets without generating images."""
        return self.consistency.coupled_by == "noise" or self.transport.is_fitted

    @property
    def total_steps(self) -> int:
        """Optimisation steps of the run, rounded up."""
        return max(-(-round(self.train.total_kimg * 1000) // self.train.batch_size), 1)


def shares_by_section() -> dict[str, list[str]]:
    """The settings whose default is a share of the run's length."""
    sections = {n: f.annotation for n, f in Config.model_fields.items()}
    found = {
        section: [name for name, field in model.model_fields.items() if isinstance(field.default, Share)]
        for section, model in sections.items()
        if isinstance(model, type) and issubclass(model, Section)
    }
    return {section: names for section, names in found.items() if names}
