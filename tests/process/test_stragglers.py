"""A slow rank is named in the metrics and in a log line; the others are not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from . import runs

LIMIT_SECONDS = 300  # far more than it takes on two busy cores
NAMED = "holds up the others"
RATIO = 2.5  # a rank that is stopped four fifths of its time takes five times as long; a busy machine slows all alike


@contextmanager
def mostly_stopped(pid: int) -> Iterator[None]:
    """Within, stop a process for 180 ms of every 200 ms."""
    over = threading.Event()

    def strike() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.18)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.02)

    striking = threading.Thread(target=strike)
    striking.start()
    try:
        yield
    finally:
        over.set()
        striking.join()


def lines_until_named(process: subprocess.Popen[str]) -> list[str]:
    """Lines of a run up to the first that names a slow rank."""
    assert process.stderr is not None
    alarm = threading.Timer(LIMIT_SECONDS, process.kill)
    alarm.start()
    lines = []
    for line in process.stderr:
        lines.append(line)
        if NAMED in line:
            break
    alarm.cancel()
    return lines


def compared(run_dir: Path) -> list[dict[str, Any]]:
    """Records that compare the ranks."""
    return [record for record in runs.records(run_dir) if "speed/slowest_rank" in record]


@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finding a rank's process needs /proc")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_slowed_rank_is_named_and_no_other(tmp_path: Path, strategy: str) -> None:
    run_dir, port = tmp_path / "run", runs.free_port()
    options = ("--distributed.strategy", strategy, "--resilience.straggler-ratio", str(RATIO))
    short_steps = ("--train.cell-size", "16", "--train.one-step-share", "1")  # a cell for each rank, and one pass of it
    many_steps = ("--telemetry.log-every-kimg", str(10 * runs.SMALL_BATCH / 1000))  # an interval of many stops
    small = (*runs.SMALL, *short_steps, *many_steps, "--telemetry.prometheus-port", str(port))
    agent = runs.start(runs.elastic(run_dir, *small, *options, steps=100_000), {"NPROC": "2", "GRACE_SECONDS": "1"})
    try:
        runs.wait_until(lambda: runs.last_step(run_dir), agent)
        with mostly_stopped(runs.workers_of(agent.pid)[1]):
            lines = lines_until_named(agent)
            named_at = len(compared(run_dir))
            runs.wait_until(lambda: len(compared(run_dir)) >= named_at + 2, agent)  # the line comes before the record
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            page = direct.open(f"http://127.0.0.1:{port}/metrics", timeout=20).read().decode()
            last = compared(run_dir)[-1]
    finally:
        agent.terminate()
        runs.outcome_of(agent)
    assert [line for line in lines if NAMED in line] == lines[-1:]
    assert re.search(r" rank 1 on \S+ holds up the others", lines[-1])
    assert last["speed/slowest_rank"] == 1
    assert last["speed/slowest_ratio"] > 1
    assert len(last["speed/rank_step_seconds"]) == 2
    found = dict(re.findall(r'gfgw_rank_step_seconds\{rank="(\d)"\} (\S+)', page))
    assert float(found["1"]) > float(found["0"])
