"""A rank ends with its agent, even if that ends while the rank starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gfgw_prod import __version__
from gfgw_prod.process.leaving import AGENT_PID

from . import runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")


def agent_that(ends: str) -> list[str]:
    """A shell that starts a rank like an agent, one second late."""
    script = f'export {AGENT_PID}=$$; (sleep 1; exec "$@") & {ends}'
    return ["sh", "-c", script, "sh", *runs.GFGW, "--version"]


def test_rank_that_starts_after_its_agent_ended_does_nothing() -> None:
    # The output is read to its end, so the rank has ended as well.
    alone, attended = runs.execute(agent_that("exit 0")), runs.execute(agent_that("wait"))
    assert __version__ in attended.stdout, attended.stderr
    assert alone == runs.Outcome(0, "", "")


def test_child_of_a_rank_does_not_take_the_agent_for_its_parent() -> None:
    rank = (
        "import subprocess, sys; from gfgw_prod.process.leaving import die_with_agent; die_with_agent(); "
        "sys.exit(subprocess.run([sys.executable, '-m', 'gfgw_prod', '--version']).returncode)"
    )
    outcome = runs.execute([sys.executable, "-c", rank], {AGENT_PID: str(os.getpid())})
    assert outcome.code == 0
    assert __version__ in outcome.stdout


def lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, but not reaped yet


def assert_they_end(workers: dict[int, int], within_seconds: float) -> None:
    deadline = time.monotonic() + within_seconds
    while alive := [worker for worker in workers.values() if lives(worker)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def kill_and_wait(agent: subprocess.Popen[str]) -> None:
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait()


def test_no_rank_outlives_its_agent(tmp_path: Path) -> None:
    agent = runs.start(runs.elastic(tmp_path / "run", steps=10_000), {"NPROC": "1"})
    runs.wait_until((tmp_path / "run" / "stats.jsonl").exists, agent)
    workers = runs.workers_of(agent.pid)
    assert workers
    assert all(lives(worker) for worker in workers.values())
    kill_and_wait(agent)
    assert_they_end(workers, within_seconds=30)


def test_agent_killed_while_its_rank_starts_does_not_block_the_next_run(tmp_path: Path) -> None:
    command = runs.elastic(tmp_path / "run", steps=1)
    agent = runs.start(command, {"NPROC": "1"})
    workers = runs.wait_until(lambda: runs.workers_of(agent.pid), agent)
    kill_and_wait(agent)
    assert_they_end(workers, within_seconds=30)
    assert not any((tmp_path / "run").glob("checkpoints/step-*"))
    again = runs.execute(command, {"NPROC": "1"})
    assert again.code == 0, again.stderr
