"""Schedules in images seen, against the figures of the first report."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfgw_prod.checkpoint.run_settings import resumable
from gfgw_prod.distributed.cells import Cell
from gfgw_prod.settings.reading import read_yaml, resolve, write_yaml
from gfgw_prod.settings.schedule import exponential, learning_rate, linear, schedules_at
from gfgw_prod.training.times import draw_times

CONFIGS = Path(__file__).parents[2] / "configs"


def schedules_of(name: str, images: int) -> tuple[float, float, float]:
    """λ, ε and the learning rate of a configuration file after ``images`` images."""
    now = schedules_at(resolve(read_yaml(CONFIGS / name)), images)
    return now.structure_weight, now.epsilon, now.learning_rate


def test_seed_report_gives_the_figures_that_were_printed_at_100_kimg() -> None:
    structure_weight, epsilon, _ = schedules_of("seed_report.yaml", 100_000)
    assert structure_weight == pytest.approx(0.125, abs=1e-12)
    assert round(epsilon, 3) == 0.087
    *_, rate = schedules_of("seed_report.yaml", 100_000 - 32)  # one of its steps of 32 images before
    assert rate == pytest.approx(3.124e-05, abs=1e-12)


@pytest.mark.parametrize(
    ("kimg", "expected"),
    [  # lambda rises by 0.04 in 1,000; epsilon falls tenfold in 10,000; the rate rises; cos(pi (k - 1000) / 199000)
        (0, (0.1, 0.1, 0.0)),
        (100, (0.104, 0.0977237, 1e-5)),
        (1_000, (0.14, 0.0794328, 1e-4)),
        (10_000, (0.5, 0.01, 9.949617e-5)),
        (100_500, (0.5, 0.01, 5e-5)),
    ],
)
def test_recommended_schedules_are_those_worked_out_by_hand(kimg: int, expected: tuple[float, float, float]) -> None:
    assert schedules_of("imagenet64.yaml", kimg * 1000) == pytest.approx(expected, rel=1e-6)


def test_recommended_times_leave_the_first_stage_at_100_kimg() -> None:
    time = resolve(read_yaml(CONFIGS / "imagenet64.yaml")).time
    cell = Cell(seed=0, step=0, index=0, size=512)
    assert draw_times(time, cell, 99_999).min() >= 0.7
    assert draw_times(time, cell, 100_000).min() < 0.5


@pytest.mark.parametrize("name", ["seed_report.yaml", "cifar10.yaml", "digits.yaml"])
def test_configuration_files_are_whole(name: str) -> None:
    assert resolve(read_yaml(CONFIGS / name)).total_steps > 1


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


def test_average_of_a_step_counts_its_own_images() -> None:
    config = resolve({"train": {"batch_size": 32}, "ema": {"halflife_kimg": 500, "rampup_ratio": 0.05}})
    now = schedules_at(config, 9_968)
    assert now.ema_halflife_images == 500.0
    assert now.ema_decay == 0.5 ** (32 / 500)
    assert now.values()["optimizer/ema_halflife_images"] == 500.0


def test_lengths_are_shares_of_the_run_where_they_are_not_set() -> None:
    config = resolve({"train": {"total_kimg": 400}, "transport": {"epsilon_kimg": 7}})
    assert (config.transport.epsilon_kimg, config.transport.structure_weight_kimg) == (7, 400)
    assert (config.optimizer.decay_kimg, config.optimizer.warmup_kimg) == (400, 8)
    assert (config.ema.halflife_kimg, config.consistency.kimg) == (8, 400)
    again = resolve(config.model_dump(mode="json"))  # as a run records it
    assert again == config
    assert schedules_at(config, 200_000).learning_rate == schedules_at(resolve({}), 50_000).learning_rate
    assert resolve({}).transport.epsilon_kimg == 100  # and not what the run before had


def test_longer_run_keeps_the_lengths_that_it_began_with(tmp_path: Path) -> None:
    began = resolve({"train": {"total_kimg": 1}, "optimizer": {"warmup_kimg": 0.5}})
    layers = {"run": {"dir": tmp_path}, "train": {"total_kimg": 8}, "ema": {"halflife_kimg": 3}}
    assert resumable(layers) == resolve(layers)
    write_yaml(began, tmp_path / "config.yaml")
    (tmp_path / "checkpoints").mkdir()
    assert resumable(layers) == resolve(layers)  # nothing to resume
    (tmp_path / "checkpoints" / "step-00000004").mkdir()
    resumed = resumable(layers)
    assert resumed.train.total_kimg == 8
    assert (resumed.optimizer.decay_kimg, resumed.optimizer.warmup_kimg, resumed.ema.halflife_kimg) == (1, 0.5, 3)
    (tmp_path / "config.yaml").write_text("optimizer: 3")
    assert resumable(layers) == resolve(layers)
