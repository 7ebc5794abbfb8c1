"""Schedules in images seen, with the figures the first report printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfgw_prod.schedule import exponential, learning_rate, linear


def test_report_figures_at_100_kimg() -> None:
    assert linear(0.1, 0.5, 1600, 100_000) == pytest.approx(0.125, abs=1e-12)
    assert exponential(0.1, 0.01, 1600, 100_000) == pytest.approx(0.0866, abs=5e-5)


def test_report_learning_rate_one_step_before_100_kimg() -> None:
    assert learning_rate(1e-4, 0.0, 320, 10_000, 100_000 - 32) == pytest.approx(3.124e-05, abs=1e-12)


def test_schedules_begin_and_stay_where_they_should() -> None:
    assert linear(0.1, 0.5, 10, 0) == 0.1
    assert linear(0.1, 0.5, 10, 10_000) == linear(0.1, 0.5, 10, 99_000) == 0.5
    assert exponential(0.1, 0.001, 10, 5_000) == pytest.approx(0.01)
    assert exponential(0.1, 0.001, 10, 99_000) == pytest.approx(0.001)


def test_length_zero_is_the_end_value_from_the_start() -> None:
    assert linear(0.1, 0.5, 0, 0) == 0.5
    assert exponential(0.1, 0.01, 0, 0) == pytest.approx(0.01)


def test_learning_rate_warms_up_then_falls_along_a_cosine() -> None:
    rates = [learning_rate(2.0, 0.1, 10, 110, kimg * 1000) for kimg in (0, 5, 10, 60, 110, 500)]
    assert rates == pytest.approx([0.0, 1.0, 2.0, 1.1, 0.2, 0.2])


def test_no_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(2.0, 0.0, 0, 100, 0) == 2.0


@given(images=st.integers(0, 10**9), warmup=st.floats(0, 1e4), total=st.floats(1e-3, 1e6), ratio=st.floats(0, 1))
def test_learning_rate_never_leaves_zero_to_peak(images: int, warmup: float, total: float, ratio: float) -> None:
    assert 0 <= learning_rate(1e-3, ratio, warmup, total, images) <= 1e-3 * (1 + 1e-12)
