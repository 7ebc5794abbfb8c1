"""A rank that is killed and replaced while the other one stays: over NCCL where there are two GPUs, else over gloo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu.check import ROOT, Place, Row, digest_of
from benchmarks.recovery import STEP_KIMG, ranks_of, records, wait_for_record

STEPS = 16
KILLED_AFTER = 4  # steps
LAUNCHER = (
    *("-m", "gfgw_prod.launcher", "--nproc-per-node", "2", "--max-restarts", "3", "--local-addr", "localhost"),
    *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
)


def replaced(place: Place) -> Iterator[Row]:
    """A run undisturbed, and twice with a kill."""
    gpus = torch.cuda.device_count() if place.device.type == "cuda" else 0
    yield Row("replaced", "two ranks over", "NCCL" if gpus > 1 else "gloo")
    rank = "benchmarks.gpu.rank" if gpus == 1 else "gfgw_prod"
    train(place, rank, "not-killed", "ddp", kill=False)
    expected = digest_of(place.directory / "not-killed")
    for strategy in ("ddp", "fsdp"):
        seconds, said = train(place, rank, f"replaced-{strategy}", strategy, kill=True)
        stays = "a lost rank was replaced" in said and "resumed" not in said
        yield Row("replaced", f"{strategy}: the other rank stays", stays, stays)
        yield Row("replaced", f"{strategy}: kill to the next new step, s", seconds)
        same = digest_of(place.directory / f"replaced-{strategy}") == expected
        yield Row("replaced", f"{strategy}: the same weights", same, same)


def train(place: Place, rank: str, name: str, strategy: str, *, kill: bool) -> tuple[float, str]:
    """Seconds from the kill of a rank, if there is one, to the next new step, and what the run said."""
    run_dir, log = place.directory / name, place.directory / f"{name}.log"
    command = (
        *(sys.executable, *LAUNCHER, "-m", rank, "train", "--config", "digits", "--run.dir", str(run_dir)),
        *("--run.device", place.device.type, "--distributed.strategy", strategy, "--resilience.in-place", "true"),
        *("--train.total-kimg", str(STEPS * STEP_KIMG), "--checkpoint.every-kimg", "1000"),
        *("--evaluation.every-kimg", "0", "--telemetry.progress", "off", "--telemetry.samples-every-kimg", "1000"),
        *("--telemetry.log-every-kimg", str(STEP_KIMG), *place.network),
    )
    seconds = 0.0
    with log.open("w") as file:
        agent = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=file)
    try:
        if kill:
            seconds = recovery_seconds(run_dir, agent)
        code = agent.wait(timeout=240)
    finally:
        if agent.poll() is None:
            agent.terminate()
            agent.wait(timeout=120)
    if code != 0:
        raise RuntimeError(f"{name}: exit code {code}: {log.read_text(errors='replace').splitlines()[-1:]}")
    return seconds, log.read_text(errors="replace")


def recovery_seconds(run_dir: Path, agent: subprocess.Popen[bytes]) -> float:
    """Kill a rank, and wait for a step that was not made before."""
    wait_for_record(run_dir, 0.0, KILLED_AFTER, agent)
    done, killed = records(run_dir)[-1]["step"], time.time()
    os.kill(ranks_of(agent.pid)[1], signal.SIGKILL)
    return float(wait_for_record(run_dir, killed, done, agent)["time"]) - killed
