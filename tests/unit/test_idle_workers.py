"""The launcher kills a rank that does not run while a generation forms, but for one that builds what others have."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gfgw_prod.launcher.workers import LEAVE_SECONDS, NOT_COUNTED, WAITS_FOR_A_DISK, IdleWorkers, _state, _time_run

SLEEPS = "S"  # the state of a process that has come to its sleep
LOOKS = int(LEAVE_SECONDS) + 1  # a second apart, as far as the launcher is told


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    if sys.platform != "linux" or _time_run(process.pid) in NOT_COUNTED:
        process.kill()
        pytest.skip("the kernel does not count how long a process runs")
    deadline = time.monotonic() + 20
    while _time_run(process.pid).split()[2] == "0" or _state(process.pid) != SLEEPS:
        assert time.monotonic() < deadline
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def waits_for_a_file(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the state of one that waits for a disk: its child opens a pipe that nobody writes to."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    opened = f"(os.POSIX_SPAWN_OPEN, 0, {str(pipe)!r}, os.O_RDONLY, 0)"
    opens = f"import os; os.posix_spawn('/bin/true', ['true'], {{}}, file_actions=[{opened}])"
    process = subprocess.Popen([sys.executable, "-c", opens])
    deadline = time.monotonic() + 20
    # It may have waited for its own files before, without a child that opens the pipe.
    while not (_has_child(process.pid) and _state(process.pid) == WAITS_FOR_A_DISK):
        assert time.monotonic() < deadline
    yield process
    process.kill()
    pipe.open("wb").close()
    process.wait()


def _has_child(pid: int) -> bool:
    return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def killed(idle: IdleWorkers, worker: subprocess.Popen[bytes], *, forming: bool) -> bool:
    return any(idle.kill([worker], 1.0, forming=forming) for _ in range(LOOKS))


def test_rank_that_does_not_run_is_killed_only_while_ranks_meet(sleeper: subprocess.Popen[bytes]) -> None:
    idle = IdleWorkers()
    assert not killed(idle, sleeper, forming=False)
    assert killed(idle, sleeper, forming=True)


@pytest.mark.skipif(sys.platform != "linux", reason="states of processes need /proc")
def test_rank_that_waits_for_a_disk_is_not_killed(waits_for_a_file: subprocess.Popen[bytes]) -> None:
    assert not killed(IdleWorkers(), waits_for_a_file, forming=True)


def test_rank_that_replaces_another_may_wait_until_all_have_met(sleeper: subprocess.Popen[bytes]) -> None:
    idle = IdleWorkers()
    idle.building.add(sleeper.pid)
    assert not killed(idle, sleeper, forming=True)
    assert not killed(idle, sleeper, forming=False)
    assert killed(idle, sleeper, forming=True)


def test_rank_that_joins_later_may_wait_while_others_meet(sleeper: subprocess.Popen[bytes]) -> None:
    idle = IdleWorkers()
    idle.building.add(sleeper.pid)
    assert not idle.kill([sleeper], 1.0, forming=False, joining=[sleeper.pid])
    assert not killed(idle, sleeper, forming=True)
