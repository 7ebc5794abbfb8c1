"""The compared methods: ours, with the trainer's own step, and the others, each as in its paper.

All use the U-Net, batch size, AdamW, warm-up, cosine decay, clipping and EMA of ``configs/digits.yaml``. They differ in
what a step minimises. Schedules are scaled to the length of the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml
from torch import nn

from benchmarks.quality import objectives
from gfgw_prod.data.sources import Table
from gfgw_prod.data.stream import CellRows, KeyedOrder, cell_stream
from gfgw_prod.distributed.cells import random_stream, seeded_globally
from gfgw_prod.distributed.reduction import gradient_norm, scale_gradients
from gfgw_prod.distributed.world import World
from gfgw_prod.generator.ema import Ema
from gfgw_prod.settings import schedule
from gfgw_prod.settings.config import Config
from gfgw_prod.training.building import build, encode_bank
from gfgw_prod.training.optimizer import AdamW

# All methods were tuned with these; two large cells take one thread less time than eight.
TUNED_WITH = {
    "train": {"total_kimg": 100, "batch_size": 128, "cell_size": 64},
    "consistency": {"stages": 8},
    "generator": {"channels_last": False},  # faster on a CPU
}
DIGITS = Path(__file__).resolve().parents[2] / "configs" / "digits.yaml"


class Method(Protocol):
    """A generator in training."""

    fitting_seconds: float  # CPU time spent before the first step
    ema: Ema
    sampler: nn.Module  # makes one-step samples from noise, ones and class ids

    def step(self) -> None:
        """One optimisation step."""


def run_config(steps: int, seed: int, changes: Mapping[str, Any]) -> Config:
    """The settings of ``configs/digits.yaml`` and ``TUNED_WITH``, with all schedules scaled to a run of ``steps``.

    Args:
        changes: values by dotted name.
    """
    values = yaml.safe_load(DIGITS.read_text())
    for section, tuned in TUNED_WITH.items():
        values[section] |= tuned
    scale = steps * values["train"]["batch_size"] / 1000 / values["train"]["total_kimg"]
    for section, names in values.items():
        for name in names:
            if name.endswith("kimg") and section in ("transport", "time", "consistency", "optimizer", "ema", "train"):
                values[section][name] *= scale
    for name, value in changes.items():
        section, setting = name.split(".")
        values.setdefault(section, {})[setting] = value * scale if setting.endswith("kimg") else value
    return Config(seed=seed, **values)


class Ours:
    """The trainer's own step, on one rank and thread."""

    def __init__(self, table: Table, steps: int, seed: int, changes: Mapping[str, Any]):
        config = run_config(steps, seed, changes)
        world = World.start("cpu", 1, 600)
        step = build(config, world, table, lambda line: None)
        encode_bank(step)
        started = time.process_time()
        step.matcher.fit(math.prod(table.image_shape))
        self.fitting_seconds = time.process_time() - started
        self.sampler, self.ema, self._step = step.parallel.module, step.ema, step
        self._stream: Iterator[CellRows] = cell_stream(
            table,
            step.parallel.assignment,
            seed=seed,
            first_step=0,
            last_step=steps,
            size=config.train.cell_size,
            rank=0,
        )
        self._done = 0

    def step(self) -> None:
        rows = [next(self._stream) for _ in range(self._step.parallel.assignment.turns_per_rank)]
        self._step.apply(self._step.compute(self._done, rows))
        self._done += 1


class Theirs:
    """A training loop for another method's objective."""

    fitting_seconds = 0.0

    def __init__(
        self,
        objective: Callable[..., objectives.Objective],
        table: Table,
        steps: int,
        seed: int,
        changes: Mapping[str, Any],
    ):
        own = {name: value for name, value in changes.items() if "." not in name}
        self._config = config = run_config(steps, seed, {n: v for n, v in changes.items() if "." in n})
        self._world = World.start("cpu", 1, 600)
        with seeded_globally(seed, "weights"):
            self._objective = objective(config, table, **own)
        self.sampler: nn.Module = self._objective
        self.ema = Ema(self.sampler)
        o = config.optimizer
        self._optimizer = AdamW(self.sampler, betas=o.betas, weight_decay=o.weight_decay)
        self._table, self._order = table, KeyedOrder(seed, len(table))
        self._seed, self._steps, self._done = seed, steps, 0

    def step(self) -> None:
        config, batch_size, step = self._config, self._config.train.batch_size, self._done
        ids = self._order.rows(step * batch_size, batch_size)
        stream = random_stream(self._seed, "step", step)
        images, labels = self._table.rows(ids), self._table.labels[ids]
        self._objective.loss(images, labels, step / self._steps, stream).backward()
        parameters = list(self.sampler.parameters())
        if config.optimizer.clip_norm:
            norm = gradient_norm(parameters, self._world)
            scale_gradients(parameters, (config.optimizer.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        o, e, seen = config.optimizer, config.ema, step * batch_size
        self._optimizer.step(step, schedule.learning_rate(o.lr, o.final_lr_ratio, o.warmup_kimg, o.decay_kimg, seen))
        self.ema.update(schedule.ema_decay(e.halflife_kimg, e.rampup_ratio, batch_size, seen + batch_size))
        self._done += 1
