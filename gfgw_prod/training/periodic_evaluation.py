"""Evaluations of a run's averaged weights during training and at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.world import World
from gfgw_prod.evaluation.evaluator import Evaluator
from gfgw_prod.evaluation.metric_spaces import choose_spaces
from gfgw_prod.evaluation.spaces import WeightFiles, build_space, trained_with
from gfgw_prod.generator.ema import Ema
from gfgw_prod.process.meter import Meter, Mode
from gfgw_prod.process.signals import StopRequestedError
from gfgw_prod.process.watchdog import watch
from gfgw_prod.resilience.preemption import StopRequest
from gfgw_prod.settings import schedule
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.evaluation import FIGURES, SEED
from gfgw_prod.telemetry.sinks import last_recorded_step
from gfgw_prod.training.precision import Precision
from gfgw_prod.training.reporting import Reporter


class PeriodicEvaluation:
    """Evaluates at every ``evaluation.every_kimg``, before the next step, and after the last step. Collective.

    A stop request interrupts an evaluation between two parts of its work; the resumed run makes it.

    Raises:
        UserError: if a metric cannot be measured.
    """

    def __init__(self, config: Config, table: Table, world: World, stop: StopRequest, reporter: Reporter):
        self._config, self._world, self._stop, self._reporter = config, world, stop, reporter
        self._evaluator: Evaluator | None = None
        self._measured_at: int | None = None  # step
        e = config.evaluation
        if not e.every_kimg:
            return
        files = WeightFiles.of_run(config)
        metrics = choose_spaces(e.metrics, e.features, files, trained_with(config), math.prod(table.image_shape))
        self._evaluator = Evaluator(
            table,
            metrics,
            {name: build_space(name, files, table.image_shape, reporter.log).to(world.device) for name in metrics.used},
            world,
            num=e.num,
            seed=SEED,
            conditional=config.generator.conditional,
            on_progress=self._on_progress,
        )
        reporter.evaluates = [str(metrics), *metrics.notes, *self._evaluator.cautions(e.num)]
        reporter.fd_in = metrics.by_metric.get("fd", "")

    def measure(self, step: int, images: int, ema: Ema, precision: Precision) -> bool:
        """Evaluate and record the figures, if due and not yet done; ``False`` if a stop request interrupted it."""
        if self._evaluator is None:
            return True
        if self._measured_at is None:  # a resumed run may have been stopped before or after its evaluation at this step
            stats = self._config.run.dir / "stats.jsonl"
            self._measured_at = self._world.broadcast(last_recorded_step(stats, "evaluation/seconds"))
        if step == self._measured_at or not self._due(step, images):
            return True
        started = time.monotonic()
        # Lines rather than a bar: training has one already.
        mode: Mode = "off" if self._config.telemetry.progress == "off" else "plain"
        self._meter = Meter("evaluating", mode=mode, enabled=self._world.is_main)
        try:
            with self._meter, self._reporter.evaluating(), ema.applied() as generator:
                figures = self._evaluator.measure(generator, precision.autocast)
        except StopRequestedError:
            self._reporter.measured = "told to stop before samples were measured"
            return False
        self._measured_at = step
        found = {name: value for name in FIGURES if isinstance(value := figures.get(name), float)}
        values = {f"evaluation/{name}": value for name, value in found.items()}
        self._reporter.record_values(step, images, values | {"evaluation/seconds": time.monotonic() - started})
        self._reporter.measured = f"{in_words(found)} ({self._config.evaluation.num:,} samples)"
        return True

    def _due(self, step: int, images: int) -> bool:
        config = self._config
        every = config.evaluation.every_kimg
        return step > 0 and (schedule.is_due(every, config.train.batch_size, images) or step == config.total_steps)

    def _on_progress(self, title: str, done: int, total: int, unit: str) -> None:
        watch.progress(f"evaluating: {title}")
        self._meter.show(f"evaluating: {title}", done, total, unit)
        if self._stop.requested_anywhere():
            raise StopRequestedError


def in_words(figures: Mapping[str, float]) -> str:
    """Figures grouped by which values are better."""
    groups = (
        (better, ", ".join(f"{name} {value:.3g}" for name, value in figures.items() if FIGURES[name][1] == better))
        for better in ("lower", "higher")
    )
    return "; ".join(f"{better} is better: {words}" for better, words in groups if words)
