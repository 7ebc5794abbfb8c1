"""A process killed at any moment of a save leaves whole checkpoints, and loses at most that save."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from . import runs

KILLS, MANY_KILLS = 50, 200


def kills(root: Path, *how: str) -> list[dict[str, Any]]:
    root.mkdir()
    outcome = runs.execute([sys.executable, "-m", "tests.process.saving_worker", str(root), *how], cwd=runs.ROOT)
    assert outcome.code == 0, outcome.stderr
    assert not outcome.stderr
    return [json.loads(line) for line in outcome.stdout.splitlines()]


def assert_nothing_is_lost(report: dict[str, Any]) -> None:
    assert report["whole"], report
    assert report["found"] in (report["started"] - 1, report["started"]), report
    # The newest ones, without a gap. A kill before retention leaves more than are kept.
    assert report["counted"] == list(range(report["found"] - len(report["counted"]) + 1, report["found"] + 1)), report
    assert len(report["counted"]) >= min(3, report["found"]), report
    assert not report["lines"], report  # an unfinished save is not a damaged checkpoint
    assert not report["left"], report


@pytest.mark.timeout(600)
def test_kills_at_random_moments_lose_at_most_the_save_in_flight(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    count = MANY_KILLS if request.config.getoption("--thorough") else KILLS
    found = kills(tmp_path / "root", "moments", str(count))
    assert len(found) == count
    for report in found:
        assert report["signal"] == signal.SIGKILL, report
        assert_nothing_is_lost(report)
    lost = [report["started"] - report["found"] for report in found]
    assert 1 in lost  # at least one kill hit a save


def test_kill_before_any_operation_of_a_save_loses_at_most_that_save(tmp_path: Path) -> None:
    *killed, last = kills(tmp_path / "root", "operations")
    assert len(killed) >= 15  # a save has as many file operations
    for report in killed:
        assert report["signal"] == signal.SIGKILL, report
        assert_nothing_is_lost(report)
    assert last["signal"] == 0
    assert last["found"] == last["started"]
