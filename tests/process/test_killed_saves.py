"""A process killed at any moment of a save leaves checkpoints that are whole, and loses at most that save."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from . import runs

KILLS = 200


def kills(root: Path, *how: str) -> list[dict[str, Any]]:
    root.mkdir()
    outcome = runs.execute([sys.executable, "-m", "tests.process.saving_worker", str(root), *how], cwd=runs.ROOT)
    assert outcome.code == 0, outcome.stderr
    assert not outcome.stderr
    return [json.loads(line) for line in outcome.stdout.splitlines()]


def assert_nothing_is_lost(told: dict[str, Any]) -> None:
    assert told["whole"], told
    assert told["found"] in (told["started"] - 1, told["started"]), told
    # The newest ones, without a gap. A kill before old ones are removed leaves more than are kept.
    assert told["counted"] == list(range(told["found"] - len(told["counted"]) + 1, told["found"] + 1)), told
    assert len(told["counted"]) >= min(3, told["found"]), told
    assert not told["lines"], told  # nothing that was only begun is taken for a damaged checkpoint
    assert not told["left"], told


@pytest.mark.timeout(600)
def test_two_hundred_kills_lose_at_most_the_save_in_flight(tmp_path: Path) -> None:
    found = kills(tmp_path / "root", "moments", str(KILLS))
    assert len(found) == KILLS
    for told in found:
        assert told["signal"] == signal.SIGKILL, told
        assert_nothing_is_lost(told)
    lost = [told["started"] - told["found"] for told in found]
    assert 1 in lost  # or no kill came within a save


def test_kill_before_any_operation_of_a_save_loses_at_most_that_save(tmp_path: Path) -> None:
    *killed, last = kills(tmp_path / "root", "operations")
    assert len(killed) >= 15  # the protocol has as many steps
    for told in killed:
        assert told["signal"] == signal.SIGKILL, told
        assert_nothing_is_lost(told)
    assert last["signal"] == 0
    assert last["found"] == last["started"]
