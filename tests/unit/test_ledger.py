"""The ledger of a run: causes of restarts, images lost, and time spent."""

import json
from pathlib import Path

import pytest

from gfgw_prod.process.restart_causes import (
    CAUSES,
    RESTART_CAUSE,
    expected_ranks,
    first_of,
    of_exit_codes,
    take_from_launcher,
)
from gfgw_prod.resilience.ledger import FILE, WRITE_SECONDS, Ledger


class Clock:
    """A clock that tests set by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Life:
    """One run with several starts."""

    def __init__(self, run_dir: Path):
        self.run_dir, self.clock = run_dir, Clock()

    def start(self, images: int, *, seen: int = 0, starting: float = 0.0, cause=None, productive=0.0) -> Ledger:
        ledger = Ledger(self.run_dir, self.clock)
        ledger.begin(images, seen=seen, starting_seconds=starting, cause=cause, productive_seconds=productive)
        return ledger


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path)


def restarts(ledger: Ledger) -> dict[str, float]:
    prefix = "run/restarts/"
    return {tag.removeprefix(prefix): n for tag, n in ledger.values(0).items() if tag.startswith(prefix) and n}


def test_new_run_has_lost_nothing_and_counts_its_start_as_time(life: Life) -> None:
    ledger = life.start(0, starting=10)
    life.clock.now += 30
    values = ledger.values(spent=20)
    assert (values["run/lost_images"], restarts(ledger)) == (0, {})
    assert (values["run/productive_seconds"], values["run/running_seconds"]) == (20, 40)
    assert values["run/goodput"] == 0.5


def test_evaluations_are_no_running_time_before_a_crash_and_at_the_end(life: Life) -> None:
    first = life.start(0)
    life.clock.now += 60
    first.exclude(20)  # while a checkpoint of 40 productive seconds was there
    assert first.values(spent=40)["run/goodput"] == 1
    again = life.start(600, cause="killed", productive=40.0)
    assert again.values(spent=0)["run/running_seconds"] == 40
    life.clock.now += 1_000
    again.exclude(900)
    again.end(1_000, "finished")
    life.clock.now += 5_000
    further = life.start(1_000, productive=140.0)
    assert further.values(spent=0)["run/goodput"] == 1


def test_crash_loses_what_came_after_the_checkpoint(life: Life) -> None:
    first = life.start(0)
    life.clock.now += 100
    first.record_images(900)
    life.clock.now += 1  # killed, 40 images after the last write
    life.clock.now += 59
    again = life.start(600, seen=940, cause="killed", productive=60.0)
    values = again.values(spent=0)
    assert (values["run/lost_images"], restarts(again)) == (340, {"killed": 1})
    assert values["run/goodput"] == 60 / 160


def test_time_between_a_stop_and_the_next_start_is_no_running_time(life: Life) -> None:
    first = life.start(0)
    life.clock.now += 100
    first.end(1_000, "told to stop")
    life.clock.now += 5_000
    again = life.start(1_000, starting=20, productive=90.0)
    assert restarts(again) == {"preempted": 1}
    assert again.values(0)["run/running_seconds"] == 120
    assert again.values(0)["run/lost_images"] == 0


def test_extended_run_was_not_restarted(life: Life) -> None:
    first = life.start(0)
    first.end(1_000, "finished")
    life.clock.now += 5_000
    again = life.start(1_000)
    assert restarts(again) == {}
    assert again.values(0)["run/running_seconds"] == pytest.approx(0, abs=1e-6)


def test_cause_is_unknown_if_the_last_start_recorded_no_end(life: Life) -> None:
    life.start(0)
    assert restarts(life.start(0)) == {"unknown": 1}
    error = life.start(0, cause="hang")
    assert restarts(error) == {"unknown": 1, "hang": 1}
    error.end(0, "error")
    assert restarts(life.start(0)) == {"unknown": 1, "hang": 1, "error": 1}


def test_position_is_written_now_and_then(life: Life) -> None:
    ledger = life.start(0)

    def written() -> float:
        return float(json.loads((life.run_dir / FILE).read_text())["images"])

    ledger.record_images(10)
    assert written() == 0
    life.clock.now += WRITE_SECONDS
    ledger.record_images(20)
    assert written() == 20


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "null", '{"began": "x"}', '{"began": 1', "\0\0", '{"restarts": {}, "end": 1}']
)
def test_invalid_ledger_is_replaced(life: Life, content: str) -> None:
    (life.run_dir / FILE).write_text(content)
    ledger = life.start(100, seen=200)
    assert (restarts(ledger), ledger.values(0)["run/lost_images"]) == ({}, 0)


def test_ledger_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    ledger = Life(tmp_path / "missing").start(0)
    ledger.end(10, "finished")
    assert ledger.values(1)["run/goodput"] <= 1


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        ([-9], "killed"),
        ([1, -9], "killed"),
        ([-11, 1], "signal"),
        ([1], "error"),
        ([75], "membership"),
        ([134], "error"),
    ],
)
def test_exit_codes_tell_the_cause(codes: list[int], cause: str) -> None:
    assert of_exit_codes(codes) == cause


def test_lost_connection_is_not_the_cause_where_another_launcher_knows_better() -> None:
    assert first_of(["error", None, "killed"]) == "killed"
    assert first_of([None]) is None
    assert first_of(reversed(CAUSES)) == "hang"


def test_launcher_is_heard_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESTART_CAUSE, "signal")
    assert (take_from_launcher(), take_from_launcher()) == ("signal", None)
    monkeypatch.setenv(RESTART_CAUSE, "no such cause")
    assert take_from_launcher() is None
    monkeypatch.setenv("GFGW_EXPECTED_RANKS", "16")
    assert expected_ranks() == 16
    monkeypatch.setenv("GFGW_EXPECTED_RANKS", "many")
    assert expected_ranks() == 0
