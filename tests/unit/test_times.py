"""Training times: steps at t = 1, the stage's range, the cell's own stream."""

import math

import pytest
import torch

from gfgw_prod.distributed.cells import Cell
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.schedule import is_first_of_its_kind, is_one_step, is_record_due
from gfgw_prod.settings.training import ConsistencySettings, TimeSettings
from gfgw_prod.training.times import draw_times, nearer_times

CELL = Cell(0, 3, 1, 4000)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
def test_steps_at_t_1_are_the_share_that_was_asked_for_and_evenly_spread(share: float) -> None:
    chosen = [is_one_step(share, step) for step in range(400)]
    for first in range(0, 400, 20):
        assert abs(sum(chosen[first : first + 20]) - 20 * share) < 1


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("every_kimg", [0.1, 0.4, 1.0])
def test_each_interval_records_a_step_of_each_kind_if_it_has_one(share: float, every_kimg: float) -> None:
    size, steps = 100, 60
    config = Config(
        train={"one_step_share": share, "batch_size": size, "cell_size": size}, telemetry={"log_every_kimg": every_kimg}
    )
    kinds = [is_one_step(share, step) for step in range(steps)]
    recorded = [step for step in range(steps) if is_record_due(config, step) or is_first_of_its_kind(config, step)]
    every = round(every_kimg * 1000 / size)
    for due in range(every - 1, steps, every):
        interval = range(due, min(due + every, steps))
        expected = {kinds[step]: step for step in reversed(interval)}  # the first of each kind
        assert [step for step in recorded if step in interval] == sorted(expected.values())
    assert all(step >= every - 1 for step in recorded)


@pytest.mark.parametrize(("images", "low", "high"), [(0, 0.7, 1.0), (9_999, 0.7, 1.0), (10_000, 0.0, 1.0)])
def test_times_span_the_range_of_their_stage(images: int, low: float, high: float) -> None:
    t = draw_times(TimeSettings(stage1_kimg=10), CELL, images)
    width = high - low
    assert t.min() >= low
    assert t.max() <= high
    assert t.min() < low + 0.1 * width
    assert t.max() > high - 0.1 * width
    assert abs(float(t.median()) - (low + high) / 2) < 0.03 * width  # the logit is symmetric


def test_location_moves_and_scale_spreads_the_times() -> None:
    settings = {"stage1_kimg": 0}
    plain = draw_times(TimeSettings(**settings), CELL, 0)
    assert draw_times(TimeSettings(location=1.0, **settings), CELL, 0).mean() > plain.mean() + 0.1
    assert draw_times(TimeSettings(scale=0.1, **settings), CELL, 0).std() < plain.std() / 2


def test_times_are_the_cells_own() -> None:
    settings = TimeSettings()
    assert torch.equal(draw_times(settings, CELL, 0), draw_times(settings, Cell(0, 3, 1, 4000), 0))
    assert not torch.equal(draw_times(settings, CELL, 0), draw_times(settings, Cell(0, 3, 2, 4000), 0))


def test_nearer_times_are_the_hand_formula() -> None:
    settings = ConsistencySettings(stages=4, kimg=1.0)
    t = torch.tensor([0.5, 0.9])  # noise levels 1 and 9
    for images, shrink in ((0, 2), (249, 2), (250, 4), (999, 16), (5_000, 16)):  # four stages; the last stays
        r, apart = nearer_times(settings, t, images)
        for position, sigma in enumerate((1.0, 9.0)):
            wanted = min(sigma * (1 + 8 / (1 + math.exp(sigma))) / shrink, sigma)
            assert apart[position] == pytest.approx(wanted, rel=1e-4)
            level = sigma - wanted
            assert r[position] == pytest.approx(level / (1 + level), abs=1e-5)


def test_nearer_times_of_any_time_are_nearer_and_finite() -> None:
    t = torch.tensor([0.0, 1e-7, 1e-3, 0.5, 0.999999, 1.0])
    for stages in (1, 12):
        r, apart = nearer_times(ConsistencySettings(stages=stages, kimg=1.0), t, 10**9)
        assert ((r >= 0) & (r <= t)).all()
        assert (apart > 0).all()
        assert apart.isfinite().all()
