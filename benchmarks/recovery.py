"""Time from SIGKILL of a rank to the next new optimisation step, compared with a cold start. Digits, two ranks.

A new step is one that was not done before the kill. If all ranks restart, steps since the last checkpoint are repeated
first; if the rank is replaced in place, none is. Each run gives the time of its start and of its recovery, split into
the phases that it reports: `launcher` is the agent's part, `noticed` the time until the agent saw the loss.
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
PHASES = (
    *("shell", "noticed", "launcher", "imports", "rendezvous", "data", "generator"),
    *("bank", "checkpoint", "first_step", "repeated steps"),
)


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The records of the steps so far."""
    path = run_dir / "stats.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in found if "loss/total" in record]


def ranks_of(agent: int) -> dict[int, int]:
    """Process ids of an agent's ranks, by rank."""
    found = {}
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        try:
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        found |= {int(each[5:]): int(child) for each in variables if each.startswith(b"RANK=")}
    return found


def wait_for_record(run_dir: Path, after: float, step: int, agent: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The first record later than ``after`` of a step later than ``step``."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline and agent.poll() is None:
        for record in records(run_dir):
            if record["time"] > after and record["step"] > step:
                return record
        time.sleep(0.01)
    raise RuntimeError(f"no step after {step}; the launcher's exit code: {agent.poll()}")


def phases_of(record: dict[str, Any]) -> dict[str, float]:
    """Seconds of each phase of a start, as the run reports them."""
    return {tag.removeprefix("startup/"): value for tag, value in record.items() if tag.startswith("startup/")}


def measure(
    run_dir: Path,
    steps_lost: int,
    in_place: bool,
    *options: str,
    rank: int = 1,
    fault: signal.Signals = signal.SIGKILL,
) -> tuple[dict[str, float], dict[str, float]]:
    """Start a run, hit a rank, and stop the run once it has recovered. Returns both times by phase."""
    command = ["bash", "launch/elastic.sh", "--config", "configs/digits.yaml", "--run.dir", str(run_dir)]
    command += ["--telemetry.progress", "off", "--telemetry.samples-every-kimg", "1000"]
    command += ["--telemetry.log-every-kimg", str(STEP_KIMG)]
    command += ["--checkpoint.every-kimg", str(CHECKPOINT_STEPS * STEP_KIMG)]
    command += ["--resilience.in-place", str(in_place).lower(), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "NPROC": "2"}
    started = time.time()
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=quiet, stderr=quiet) as agent:
        try:
            first = wait_for_record(run_dir, started, 0, agent)
            cold = phases_of(first)
            cold = {"shell": first["time"] - started - sum(cold.values()), **cold}

            wait_for_record(run_dir, started, 2 * CHECKPOINT_STEPS + steps_lost, agent)
            done = records(run_dir)[-1]["step"]
            killed = time.time()
            os.kill(ranks_of(agent.pid)[rank], fault)
            new = wait_for_record(run_dir, killed, done, agent)
            back = next(each for each in records(run_dir) if each["time"] > killed and phases_of(each))
            recovery = phases_of(back)
            recovery = {"noticed": back["time"] - killed - sum(recovery.values()), **recovery}
            recovery["repeated steps"] = new["time"] - back["time"]
        finally:
            agent.terminate()
            agent.wait(LIMIT_SECONDS)
    return cold, recovery


def main() -> None:
    found: dict[str, list[dict[str, float]]] = {"cold start": [], "restart": [], "in place": []}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(REPEATS):
            # The kills range from just after a checkpoint to just before the next.
            lost = 1 + repeat * (CHECKPOINT_STEPS - 2) // max(REPEATS - 1, 1)
            cold, restart = measure(Path(scratch) / f"{repeat}-restart", lost, in_place=False)
            _, replaced = measure(Path(scratch) / f"{repeat}-in-place", lost, in_place=True)
            for name, parts in zip(found, (cold, restart, replaced), strict=True):
                found[name].append(parts)
                shown = ", ".join(f"{part} {parts[part]:.2f}" for part in PHASES if part in parts)
                print(f"{name:<12}{sum(parts.values()):>7.2f} s: {shown}", flush=True)
    print(f"\n{f'medians of {REPEATS}':<16}" + "".join(f"{name:>12}" for name in found) + "   seconds")
    for part in PHASES:
        cells = (statistics.median(each.get(part, 0.0) for each in runs) for runs in found.values())
        print(f"{part:<16}" + "".join(f"{cell:>12.2f}" for cell in cells))
    totals = {name: [sum(each.values()) for each in runs] for name, runs in found.items()}
    print(f"{'total':<16}" + "".join(f"{statistics.median(each):>12.2f}" for each in totals.values()))
    for name in ("restart", "in place"):
        ratios = [after / before for before, after in zip(totals["cold start"], totals[name], strict=True)]
        print(f"{name} over cold start: {statistics.median(ratios):.2f}, by run {min(ratios):.2f} to {max(ratios):.2f}")
