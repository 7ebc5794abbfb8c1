"""One step of a run on a pretended GPU, with what it waits for and launches in each phase."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.gpu.full_size import local_config, random_table
from gfgw_prod.distributed.arithmetic import arithmetic_restored, set_arithmetic
from gfgw_prod.distributed.world import World
from gfgw_prod.resilience.bad_numbers import NumberGuard
from gfgw_prod.training.building import build, encode_bank
from gfgw_prod.training.checked_step import CheckedStep

from .driver import pretended_gpu
from .pretended import CUDA, Counts


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
        config = local_config(preset, {**(changes or {}), "run": {"device": "cuda"}}, directory)
        stack.enter_context(arithmetic_restored())
        gpu = stack.enter_context(pretended_gpu(computes=computes))
        set_arithmetic(CUDA, 1)
        world = World(rank=0, world_size=1, device=CUDA)
        training = build(config, world, random_table(config, rows), lambda line: None)
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
