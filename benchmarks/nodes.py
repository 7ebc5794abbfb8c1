"""What nodes that join, leave or are lost cost the others: seconds without a new step. Digits, ranks of one node each.

Two launchers on this machine; the first stays. With every event, the other node joins, is killed, or is told to stop.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.recovery import ROOT, STEP_KIMG, records

REPEATS = 3
LIMIT_SECONDS = 120
EVENTS = ("joins", "is told to stop", "joins", "is killed")
STEADY_STEPS = 10  # between two events


class Job:
    """Launchers of one run. The first hosts the rendezvous."""

    def __init__(self, run_dir: Path, *, in_place: bool):
        with socket.create_server(("localhost", 0)) as free:
            endpoint = f"localhost:{free.getsockname()[1]}"
        self.run_dir = run_dir
        self.command = ["bash", "launch/elastic.sh", "--config", "configs/digits.yaml", "--run.dir", str(run_dir)]
        self.command += ["--telemetry.progress", "off", "--telemetry.samples-every-kimg", "1000"]
        self.command += ["--telemetry.log-every-kimg", str(STEP_KIMG), "--evaluation.every-kimg", "0"]
        self.command += ["--resilience.in-place", str(in_place).lower(), "--train.total-kimg", "100000"]
        where = {"NNODES": "1:2", "NPROC": "1", "RDZV_ENDPOINT": endpoint, "LOCAL_ADDR": "localhost"}
        self.environment = {**os.environ, **where, "RDZV_LAST_CALL": "2", "PYTHON": sys.executable}
        self.step, self.at = 0, 0.0  # the newest step, and when it was made
        self.first = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(self.command, cwd=ROOT, env=self.environment, stdout=quiet, stderr=quiet)

    def wait_for(self, ranks: int) -> float:
        """Wait until so many ranks have made some new steps. Returns the longest time between two new steps."""
        deadline, made, longest = time.monotonic() + LIMIT_SECONDS, 0, 0.0
        while made < STEADY_STEPS:
            for record in records(self.run_dir):
                if record["step"] > self.step:
                    longest = max(longest, record["time"] - (self.at or record["time"]))
                    self.step, self.at = record["step"], record["time"]
                    made = made + 1 if record["run/world_size"] == ranks else 0
            if time.monotonic() > deadline or self.first.poll() is not None:
                raise RuntimeError(f"no steps with {ranks} ranks; the launcher's exit code: {self.first.poll()}")
            time.sleep(0.05)
        return longest


def measure(job: Job) -> list[float]:
    """The longest time from one new step to the next, for each event."""
    job.wait_for(1)
    longest, other = [], job.first
    for event in EVENTS:
        if event == "joins":
            other = job.start()
        else:
            other.send_signal(signal.SIGKILL if event == "is killed" else signal.SIGTERM)
        longest.append(job.wait_for(2 if event == "joins" else 1))
        if event != "joins":
            other.wait()
    return longest


def main() -> None:
    found: dict[bool, list[list[float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(REPEATS):
            for in_place, rows in found.items():
                job = Job(Path(scratch) / f"{repeat}-{in_place}", in_place=in_place)
                try:
                    rows.append(measure(job))
                finally:
                    job.first.kill()
                    job.first.wait()
    print(f"{f'seconds, median of {REPEATS} (least, most)':<40}{'all restart':>22}{'in place':>22}")
    for number, event in enumerate(EVENTS):
        columns = ([row[number] for row in rows] for rows in found.values())
        cells = (f"{statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f})" for each in columns)
        print(f"{f'a node {event}':<40}" + "".join(f"{cell:>22}" for cell in cells))
