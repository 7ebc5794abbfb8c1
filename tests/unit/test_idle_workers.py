"""The launcher kills a rank that does not run while a generation forms, but for one that builds what others have."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from gfgw_prod.launcher.workers import LEAVE_SECONDS, NOT_COUNTED, IdleWorkers, _time_run

LOOKS = int(LEAVE_SECONDS) + 1  # a second apart, as far as the launcher is told


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    if sys.platform != "linux" or _time_run(process.pid) in NOT_COUNTED:
        process.kill()
        pytest.skip("the kernel does not count how long a process runs")
    deadline = time.monotonic() + 20
    while _time_run(process.pid).split()[2] == "0" or _is_running(process.pid):
        assert time.monotonic() < deadline
    yield process
    process.kill()
    process.wait()


def _is_running(process: int) -> bool:
    """Whether a process has not come to its sleep yet."""
    with open(f"/proc/{process}/stat", encoding="utf-8") as file:
        return file.read().rpartition(") ")[2][0] != "S"


def killed(idle: IdleWorkers, worker: subprocess.Popen[bytes], *, forming: bool) -> bool:
    return any(idle.kill([worker], 1.0, forming=forming) for _ in range(LOOKS))


def test_rank_that_does_not_run_is_killed_only_while_ranks_meet(sleeper: subprocess.Popen[bytes]) -> None:
    idle = IdleWorkers()
    assert not killed(idle, sleeper, forming=False)
    assert killed(idle, sleeper, forming=True)


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
