"""The cost of a setting: runs that differ only in it take steps in turns, on two ranks, so noise affects all alike."""

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
from gfgw_prod.training.building import encode_bank
from gfgw_prod.training.run import Run

ROOT = Path(__file__).resolve().parent.parent
MAX_STEPS, SECONDS = 200, 40


def bytes_sent() -> int:
    """Bytes sent through the loopback device of this network namespace."""
    loopback = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(loopback.split(":")[1].split()[8])


class Stepper:
    """A digits run that only takes steps."""

    def __init__(self, settings: Mapping[str, Any], name: str, world: World):
        base = reading.read_yaml(ROOT / "configs" / "digits.yaml")
        directory = {"run": {"dir": str(Path(os.environ["SCRATCH"]) / name)}}
        config = reading.resolve(base, {"resilience": {"audit_every_steps": 0}, **settings, **directory})
        world.barrier()
        starts = StartCounter(config.run.dir, config.resilience.max_no_progress, world)
        self.run, self.world, self.step = Run(config, world, starts, Startup()), world, 0
        encode_bank(self.run.training)
        self.stream = self.run.stream(MAX_STEPS + 1)

    def measure(self) -> tuple[float, int]:
        """Seconds of one step, and the bytes that all ranks sent in it, with headers and acknowledgements."""
        self.world.barrier()
        started, sent = time.perf_counter(), bytes_sent()
        self.take_step()
        self.world.barrier()
        self.step += 1
        return time.perf_counter() - started, bytes_sent() - sent

    def take_step(self) -> None:
        """Take one step."""
        self.run.checked_step(self.step, self.stream)


def in_turns(steppers: Sequence[Stepper], world: World) -> list[list[tuple[float, int]]]:
    """Measure steps of all steppers, each first as often; lists of (seconds, bytes), one a stepper. Collective."""
    first = [stepper.measure()[0] for stepper in steppers]
    rounds = world.broadcast(max(5, min(MAX_STEPS, int(SECONDS / sum(first)))))
    found: list[list[tuple[float, int]]] = [[] for _ in steppers]
    for each in range(rounds):
        for turn in range(len(steppers)):
            number = (each + turn) % len(steppers)
            found[number].append(steppers[number].measure())
    return found


def on_two_ranks(module: str, wrapper: Sequence[str] = ()) -> None:
    """Run a module under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", module]
    quiet = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "SCRATCH": scratch, **quiet}
        subprocess.run([*wrapper, *command], cwd=ROOT, env=environment, check=True)
