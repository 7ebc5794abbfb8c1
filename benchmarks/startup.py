"""Seconds from process start to the end of the first optimisation step on digits, with and without the launcher."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 5


def first_step_seconds(command: list[str], run_dir: Path, environment: dict[str, str]) -> float:
    """Wall time from the start of ``command`` to the record of its first step, written at the end of the step."""
    options = ["--config", "configs/digits.yaml", "--run.dir", str(run_dir), "--train.total-kimg", "0.1"]
    quiet = ["--evaluation.every-kimg", "0", "--telemetry.progress", "off"]
    started = time.time()
    subprocess.run([*command, *options, *quiet], cwd=ROOT, env=environment, check=True, capture_output=True)
    first = json.loads((run_dir / "stats.jsonl").read_text().splitlines()[0])
    return float(first["time"]) - started


def main() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "alone": [sys.executable, "-m", "gfgw_prod", "train"],
        "launcher, 2 ranks": ["bash", "launch/elastic.sh"],
    }
    print(f"{'':<20}{'median':>8}{'worst':>8}   seconds, {REPEATS} starts each")
    for name, command in commands.items():
        times = []
        for _ in range(REPEATS):
            with tempfile.TemporaryDirectory() as scratch:
                if name == "import torch":
                    started = time.time()
                    subprocess.run(command, check=True, capture_output=True)
                    times.append(time.time() - started)
                else:
                    times.append(first_step_seconds(command, Path(scratch) / "run", {**environment, "NPROC": "2"}))
        print(f"{name:<20}{statistics.median(times):>8.2f}{max(times):>8.2f}", flush=True)
