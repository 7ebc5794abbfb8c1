"""One step of a run on a pretended GPU, with what it waits for and launches in each phase."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.frozen import draw_frozen
from gfgw_prod.data.sources import Table, shape_and_classes
from gfgw_prod.distributed.arithmetic import arithmetic_restored, set_arithmetic
from gfgw_prod.distributed.world import World
from gfgw_prod.resilience.bad_numbers import NumberGuard
from gfgw_prod.settings import reading
from gfgw_prod.settings.config import Config
from gfgw_prod.training.building import build, encode_bank
from gfgw_prod.training.checked_step import CheckedStep

from .driver import pretended_gpu
from .pretended import CUDA, Counts

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS = 50_000  # of a pack that is not at hand


@dataclass(frozen=True)
class CountedStep:
    """What one step of a run did on the device."""

    total: Counts
    phases: dict[str, Counts]
    most_bytes: int  # of tensors on the device, at any time of the step
    state_bytes: int  # before it

    @property
    def waits(self) -> int:
        return self.total.waits.total()

    @property
    def launches(self) -> int:
        return self.total.launches.total()


def counted_step(
    preset: str,
    changes: Mapping[str, Any] | None = None,
    *,
    step: int = 1,
    computes: bool = False,
    rows: int | None = None,
) -> CountedStep:
    """Count step ``step`` of a run of ``configs/<preset>.yaml`` with changes, after the steps before it.

    Frozen networks have random weights, and the data set has random images. Without ``computes`` the numbers on the
    device are not computed, and the bank is empty.

    Args:
        rows: of the data set; by default as many as the preset's has, or ``ROWS`` of a pack.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = _local_config(preset, changes or {}, directory)
        stack.enter_context(arithmetic_restored())
        gpu = stack.enter_context(pretended_gpu(computes=computes))
        set_arithmetic(CUDA, 1)
        world = World(rank=0, world_size=1, device=CUDA)
        training = build(config, world, _random_table(config, rows), lambda line: None)
        stack.callback(training.feed.close)
        if computes:
            encode_bank(training)
        options = {"audit_every_steps": 0, "hosts": ["here"], "log": print}
        checked = CheckedStep(training, NumberGuard(config.resilience), world, **options)
        size = config.train.cell_size
        stream = training.feed.stream(training.parallel.assignment, config.seed, 0, step + 1, size)
        for number in range(step + 1):
            before, gpu.most_bytes = gpu.counts.copy(), gpu.bytes
            state_bytes = gpu.bytes
            checked(number, stream)
        marks = [(phase, event.counts) for phase, event in training.clock._marks]  # type: ignore[attr-defined]
        phases = {str(phase): now.since(then) for (_, then), (phase, now) in pairwise(marks)}
        return CountedStep(gpu.counts.since(before), phases, gpu.most_bytes, state_bytes)


def _local_config(preset: str, changes: Mapping[str, Any], directory: Path) -> Config:
    """The preset's settings, with random files in place of published ones."""
    settings = reading.read_yaml(CONFIGS / f"{preset}.yaml")
    local: dict[str, Any] = {
        "run": {"dir": str(directory / "run"), "device": "cuda"},
        "generator": {"pretrained": None},
    }
    config = reading.resolve(settings, local, changes)
    if config.features.extractor == "dinov2":
        dinov2, trunk = draw_frozen(directory)
        local |= {"features": {"weights": str(dinov2)}, "loss": {"lpips_trunk": str(trunk)}}
    return reading.resolve(settings, local, changes)


def _random_table(config: Config, count: int | None) -> Table:
    if config.data.source == "packed":
        side = config.data.image_size
        assert side is not None
        shape, classes, rows = (3, side, side), 1000, ROWS
    else:
        shape, classes, rows = shape_and_classes(config.data)
    rows, draw = count or rows, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (rows, *shape), generator=draw, dtype=torch.uint8)
    return Table(images, torch.arange(rows) % classes, peak=255, num_classes=classes)
