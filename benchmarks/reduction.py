"""Exact against fast reduction on two ranks: a step's time in turns, and its bytes on a wire of its own."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gfgw_prod import settings_io
from gfgw_prod.config import Config
from gfgw_prod.distributed.world import World
from gfgw_prod.resilience.starts import Starts
from gfgw_prod.telemetry.startup import Startup
from gfgw_prod.trainer import Run

ROOT = Path(__file__).resolve().parent.parent
MOST_PAIRS, SECONDS = 20, 60
SEEDS = {"batch_size": 256, "cell_size": 32}
RUNS: dict[str, dict[str, dict[str, int]]] = {
    "digits: 2 cells of 64": {},
    "8 cells of 32": {"train": SEEDS},
    "8 cells of 32, 2.9M parameters": {"train": SEEDS, "generator": {"model_channels": 64}},
}


def bytes_sent() -> int:
    """What has left through the loopback device of this network namespace."""
    loopback = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(loopback.split(":")[1].split()[8])


class Stepper:
    """A run that makes steps and nothing else."""

    def __init__(self, config: Config, world: World):
        starts = Starts(config.run.dir, config.resilience.max_no_progress, world)
        self.run, self.world, self.step = Run(config, world, starts, Startup()), world, 0
        self.run.bank.encode(self.run.table, self.run.extractor, config.features.block_rows, on_block=lambda rows: None)
        self.stream = self.run.stream(MOST_PAIRS + 1)

    def measure(self) -> tuple[float, int]:
        """Seconds of one step, and what all ranks sent in it, headers and acknowledgements included."""
        self.world.barrier()
        started, sent = time.perf_counter(), bytes_sent()
        self.run.training_step(self.step, self.stream)
        self.world.barrier()
        self.step += 1
        return time.perf_counter() - started, bytes_sent() - sent


def rank_main() -> None:
    world = World.start("cpu", threads=1, timeout_seconds=120)
    scratch = Path(os.environ["SCRATCH"])
    base = settings_io.read_yaml(ROOT / "configs" / "digits.yaml")
    if world.is_main:
        print(f"{'':<36}{'':<6}{'ms exact':>10}{'ms fast':>9}{'ratio':>7}{'kB exact':>10}{'kB fast':>9}{'ratio':>7}")
    for name, chosen in RUNS.items():
        for strategy in ("ddp", "fsdp"):
            steppers = {}
            for reduction in ("exact", "fast"):
                settings = {
                    **chosen,
                    "distributed": {"strategy": strategy, "reduction": reduction},
                    "run": {"dir": str(scratch / f"{list(RUNS).index(name)}-{strategy}-{reduction}")},
                }
                world.barrier()
                steppers[reduction] = Stepper(settings_io.resolve(base, settings), world)
            first = [stepper.measure()[0] for stepper in steppers.values()]
            pairs = world.share(max(5, min(MOST_PAIRS, int(SECONDS / sum(first)))))
            found: dict[str, list[tuple[float, int]]] = {reduction: [] for reduction in steppers}
            for pair in range(pairs):
                for reduction in list(steppers)[:: 1 if pair % 2 else -1]:
                    found[reduction].append(steppers[reduction].measure())
            if world.is_main:
                ms = {key: 1e3 * statistics.median(took for took, _ in each) for key, each in found.items()}
                kb = {key: statistics.median(sent for _, sent in each) / 1e3 for key, each in found.items()}
                ratio = statistics.median(a / b for (a, _), (b, _) in zip(found["exact"], found["fast"], strict=True))
                print(
                    f"{name:<36}{strategy:<6}{ms['exact']:>10.1f}{ms['fast']:>9.1f}{ratio:>7.3f}"
                    f"{kb['exact']:>10.0f}{kb['fast']:>9.0f}{kb['exact'] / kb['fast']:>7.2f}",
                    flush=True,
                )
    world.stop()


def main() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "benchmarks.reduction"]
    if shutil.which("unshare") and shutil.which("ip"):  # nobody else's bytes
        command = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *command]
    quiet = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(command, cwd=ROOT, env={**os.environ, "SCRATCH": scratch, **quiet}, check=True)


if __name__ == "__main__":
    rank_main()
