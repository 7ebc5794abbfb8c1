"""Which ranks are named as slow, and how often."""

import time

import pytest

from gfgw_prod.telemetry.stragglers import REPEAT_SECONDS, OwnTime, StragglerWatch, slowest

EVERY_SECONDS = 6.0  # an interval long enough to compare ranks


class Compared:
    """A watch over four ranks, and its clock."""

    def __init__(self) -> None:
        self.watch, self.now = StragglerWatch(["a", "a", "b", "b"], ratio=1.5), 100.0
        self.after([1, 1, 1, 1])

    def after(self, seconds: list[float], interval: float = EVERY_SECONDS) -> list[str]:
        """Lines after an interval in which each rank's steps took so long."""
        self.now += interval
        return self.watch.compare(seconds, steps=10, now=self.now)


@pytest.fixture
def compared() -> Compared:
    return Compared()


def test_own_time_excludes_waiting() -> None:
    waited = 0.0
    own = OwnTime(lambda: waited)
    for _ in range(2):
        with own:
            time.sleep(0.2)
            waited += 0.15
    mean, steps = own.take()
    assert steps == 2
    assert 0.05 <= mean < 0.2
    assert own.take() == (0.0, 0)


def test_one_of_two_ranks_can_be_the_slowest() -> None:
    assert slowest([1.0, 7.0]) == (1, 7.0)
    assert slowest([3.0, 1.0, 1.0, 1.5]) == (0, 3.0)
    assert slowest([2.0]) == (0, 1.0)


def test_slow_rank_is_named_with_its_host(compared: Compared) -> None:
    (line,) = compared.after([1, 1.1, 1.7, 1])
    assert line.startswith("rank 2 on b ")
    assert "1.7 times the median" in line


def test_ranks_within_the_ratio_are_not_named(compared: Compared) -> None:
    for _ in range(5):
        assert compared.after([1, 1.4, 0.9, 1]) == []


def test_first_step_is_not_compared() -> None:
    watch = StragglerWatch(["a", "b"], ratio=1.5)
    assert watch.compare([1, 9], steps=1, now=50.0) == []
    assert watch.compare([1, 1], steps=1, now=60.0) == []


def test_short_intervals_are_joined(compared: Compared) -> None:
    assert compared.after([1, 9, 1, 1], interval=1.0) == []
    (line,) = compared.after([1, 1, 1, 1], interval=4.5)
    assert "5.0 times" in line
    assert "20 steps" in line


def test_few_steps_are_joined_with_later_ones(compared: Compared) -> None:
    compared.now += 60
    assert compared.watch.compare([1, 9, 1, 1], steps=2, now=compared.now) == []
    (line,) = compared.after([1, 2, 1, 1])
    assert "12 steps" in line


def test_rank_that_stays_slow_is_named_every_ten_minutes(compared: Compared) -> None:
    named = sum(len(compared.after([1, 2, 1, 1])) for _ in range(round(2 * REPEAT_SECONDS / EVERY_SECONDS)))
    assert named == 2


def test_recovered_rank_that_becomes_slow_is_named_again(compared: Compared) -> None:
    assert len(compared.after([1, 2, 1, 1])) == 1
    assert compared.after([1, 1.4, 1, 1]) == []
    assert compared.after([1, 1.6, 1, 1]) == []  # it had not recovered far enough
    assert compared.after([1, 1.1, 1, 1]) == []
    assert len(compared.after([1, 1.6, 1, 1])) == 1
