"""Steps of runs that differ in one setting, made in turns on two ranks: what a setting costs, on a noisy machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gfgw_prod.distributed.world import World
from gfgw_prod.resilience.starts import StartCounter
from gfgw_prod.settings import reading
from gfgw_prod.telemetry.startup import Startup
from gfgw_prod.training.trainer import Run

ROOT = Path(__file__).resolve().parent.parent
MOST_PAIRS, SECONDS = 200, 40


def bytes_sent() -> int:
    """What has left through the loopback device of this network namespace."""
    loopback = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(loopback.split(":")[1].split()[8])


class Stepper:
    """A digits run that makes steps and nothing else."""

    def __init__(self, settings: Mapping[str, Any], name: str, world: World):
        base = reading.read_yaml(ROOT / "configs" / "digits.yaml")
        place = {"run": {"dir": str(Path(os.environ["SCRATCH"]) / name)}}
        config = reading.resolve(base, {"resilience": {"audit_every_steps": 0}, **settings, **place})
        world.barrier()
        starts = StartCounter(config.run.dir, config.resilience.max_no_progress, world)
        self.run, self.world, self.step = Run(config, world, starts, Startup()), world, 0
        self.run.parts.encode_bank()
        self.stream = self.run.stream(MOST_PAIRS + 1)

    def measure(self) -> tuple[float, int]:
        """Seconds of one step, and what all ranks sent in it, headers and acknowledgements included."""
        self.world.barrier()
        started, sent = time.perf_counter(), bytes_sent()
        self.run.checked_step(self.step, self.stream)
        self.world.barrier()
        self.step += 1
        return time.perf_counter() - started, bytes_sent() - sent


def in_turns(steppers: Sequence[Stepper], world: World) -> list[list[tuple[float, int]]]:
    """What each stepper measures, step by step, the first to go taking turns. Collective."""
    first = [stepper.measure()[0] for stepper in steppers]
    pairs = world.broadcast(max(5, min(MOST_PAIRS, int(SECONDS / sum(first)))))
    found: list[list[tuple[float, int]]] = [[] for _ in steppers]
    for pair in range(pairs):
        for number in list(range(len(steppers)))[:: 1 if pair % 2 else -1]:
            found[number].append(steppers[number].measure())
    return found


def on_two_ranks(module: str, wrapper: Sequence[str] = ()) -> None:
    """Runs a module under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", module]
    quiet = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "SCRATCH": scratch, **quiet}
        subprocess.run([*wrapper, *command], cwd=ROOT, env=environment, check=True)
