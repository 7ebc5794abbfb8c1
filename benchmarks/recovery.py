"""From SIGKILL of a rank to the next new optimisation step, against a cold start, on digits with two ranks.

A new step is one that had not been made when the rank was killed: what was lost since the last checkpoint is made again
before it. Both times are taken in turns from the same runs, and a run's own account of its start shows what they are
made of: `launcher` is the agent's share, `noticed` the time until it saw that the rank was gone.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 5
LIMIT_SECONDS = 300
CHECKPOINT_STEPS = 10
STEP_KIMG = 0.128
PARTS = (
    *("shell", "noticed", "launcher", "imports", "rendezvous", "data", "generator"),
    *("bank", "checkpoint", "first_step", "steps again"),
)


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The records of steps so far."""
    path = run_dir / "stats.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in found if "loss/total" in record]


def rank_of(agent: int, rank: int) -> int:
    """The process of a rank."""
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise LookupError(f"rank {rank} of agent {agent} is not there")


def wait_for_record(run_dir: Path, after: float, step: int, agent: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The first record since a time of a step past the given one."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline and agent.poll() is None:
        for record in records(run_dir):
            if record["time"] > after and record["step"] > step:
                return record
        time.sleep(0.01)
    raise RuntimeError(f"no step after {step}; the launcher's exit code: {agent.poll()}")


def parts_of(record: dict[str, Any]) -> dict[str, float]:
    """A run's account of its start."""
    return {tag.removeprefix("startup/"): value for tag, value in record.items() if tag.startswith("startup/")}


def measure(run_dir: Path, steps_lost: int) -> tuple[dict[str, float], dict[str, float]]:
    """Starts a run cold, kills a rank, and stops it when it has recovered; both times in parts."""
    command = ["bash", "launch/elastic.sh", "--config", "configs/digits.yaml", "--run.dir", str(run_dir)]
    command += ["--telemetry.progress", "off", "--telemetry.samples-every-kimg", "1000"]
    command += ["--telemetry.log-every-kimg", str(STEP_KIMG)]
    command += ["--checkpoint.every-kimg", str(CHECKPOINT_STEPS * STEP_KIMG)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "NPROC": "2"}
    started = time.time()
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=quiet, stderr=quiet) as agent:
        try:
            first = wait_for_record(run_dir, started, 0, agent)
            cold = parts_of(first)
            cold = {"shell": first["time"] - started - sum(cold.values()), **cold}

            wait_for_record(run_dir, started, 2 * CHECKPOINT_STEPS + steps_lost, agent)
            made = records(run_dir)[-1]["step"]
            killed = time.time()
            os.kill(rank_of(agent.pid, 1), signal.SIGKILL)
            new = wait_for_record(run_dir, killed, made, agent)
            back = next(each for each in records(run_dir) if each["time"] > killed and parts_of(each))
            recovery = parts_of(back)
            recovery = {"noticed": back["time"] - killed - sum(recovery.values()), **recovery}
            recovery["steps again"] = new["time"] - back["time"]
        finally:
            agent.terminate()
            agent.wait(LIMIT_SECONDS)
    return cold, recovery


def main() -> None:
    found: dict[str, list[dict[str, float]]] = {"cold start": [], "recovery": []}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(REPEATS):
            # From just after a checkpoint to just before the next.
            lost = 1 + repeat * (CHECKPOINT_STEPS - 2) // max(REPEATS - 1, 1)
            for name, parts in zip(found, measure(Path(scratch) / str(repeat), lost), strict=True):
                found[name].append(parts)
                told = ", ".join(f"{part} {parts[part]:.2f}" for part in PARTS if part in parts)
                print(f"{name:<12}{sum(parts.values()):>7.2f} s: {told}", flush=True)
    print(f"\nmedians of {REPEATS}{'cold start':>24}{'recovery':>12}   seconds")
    for part in PARTS:
        cells = [statistics.median(each.get(part, 0.0) for each in runs) for runs in found.values()]
        print(f"{part:<16}{cells[0]:>19.2f}{cells[1]:>12.2f}")
    totals = {name: [sum(each.values()) for each in runs] for name, runs in found.items()}
    cold, recovery = (statistics.median(each) for each in totals.values())
    pairs = [after / before for before, after in zip(totals["cold start"], totals["recovery"], strict=True)]
    print(f"{'in all':<16}{cold:>19.2f}{recovery:>12.2f}   ratio {statistics.median(pairs):.2f}, pair by pair", end="")
    print(f" {min(pairs):.2f} to {max(pairs):.2f}")
