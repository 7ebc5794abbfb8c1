"""What a record says of a step: losses and coupling, schedules, speed, and what each rank spends."""

from __future__ import annotations

from gfgw_prod.settings.config import Config
from gfgw_prod.settings.schedule import schedules_at
from gfgw_prod.telemetry.pace import Pace
from gfgw_prod.telemetry.sinks import Value
from gfgw_prod.training.checked_step import CheckedStep
from gfgw_prod.training.flops import FlopsRate
from gfgw_prod.training.rank_metrics import RankMetrics
from gfgw_prod.training.step import TrainingStep
from gfgw_prod.training.step_data import StepResult


class StepRecords:
    """Gathers a step's record from the objects that each know a part of it.

    Args:
        step: completed steps, after which time counts.
        step_seconds: seconds of a step, if they are known; else 0.

    Attributes:
        pace: speed since the last record.
    """

    def __init__(
        self,
        config: Config,
        training: TrainingStep,
        checked_step: CheckedStep,
        ranks: RankMetrics,
        step: int,
        step_seconds: float,
    ):
        self._config, self._training, self._checked_step, self._ranks = config, training, checked_step, ranks
        self._flops = FlopsRate(config, training.objective, training.table, training.world)
        self.pace = Pace(step, config.total_steps, config.train.batch_size, step_seconds)

    def values(self, step: int, images: int, result: StepResult) -> dict[str, Value]:
        """Values by tag of the catalogue, after ``step`` steps and ``images`` images. Collective."""
        training, pace = self._training, self.pace.values(step)
        return {
            **self._checked_step.measure(result),
            **schedules_at(self._config, result.images_seen).values(),
            **self._checked_step.values(),
            **training.values(),
            **pace,
            **self._flops.values(pace["speed/images_per_second"]),
            **self._ranks.values(),
            "run/steps": step,
            "run/images": images,
            "run/world_size": training.world.world_size,
            "run/idle_share": training.parallel.assignment.idle_share,
            "transport/bank_share": training.matcher.usage.share(images),
        }
