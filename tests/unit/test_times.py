"""Training times: the one-step share, the stage's range, the cell's own stream."""

import pytest
import torch

from gfgw_prod.config import TimeSettings
from gfgw_prod.distributed.cells import Cell
from gfgw_prod.step import draw_times

CELL = Cell(0, 3, 1, 4000)


def test_one_step_share_is_spread_evenly() -> None:
    t = draw_times(TimeSettings(one_step_share=0.25), CELL, 0)
    assert (t[3::4] == 1).all()
    assert (t[t.numel() - t.numel() // 4 * 4 :: 4] == 1).float().mean() < 0.01  # but for rounding


@pytest.mark.parametrize(("size", "share"), [(1, 0.25), (2, 0.25), (6, 0.25), (1, 0.75), (5, 0.1), (64, 0.75)])
def test_one_step_share_holds_over_a_batch_of_small_cells(size: int, share: float) -> None:
    settings = TimeSettings(one_step_share=share)
    t = torch.cat([draw_times(settings, Cell(0, 3, index, size), 0) for index in range(60)])
    assert abs(int((t == 1).sum()) - share * len(t)) <= 1


@pytest.mark.parametrize(("images", "low", "high"), [(0, 0.7, 1.0), (9_999, 0.7, 1.0), (10_000, 0.0, 1.0)])
def test_times_span_the_range_of_their_stage(images: int, low: float, high: float) -> None:
    t = draw_times(TimeSettings(one_step_share=0), CELL, images)
    width = high - low
    assert t.min() >= low
    assert t.max() <= high
    assert t.min() < low + 0.1 * width
    assert t.max() > high - 0.1 * width
    assert abs(float(t.median()) - (low + high) / 2) < 0.03 * width  # the logit is symmetric


def test_location_moves_and_scale_spreads_the_times() -> None:
    settings = {"one_step_share": 0, "stage1_kimg": 0}
    plain = draw_times(TimeSettings(**settings), CELL, 0)
    assert draw_times(TimeSettings(location=1.0, **settings), CELL, 0).mean() > plain.mean() + 0.1
    assert draw_times(TimeSettings(scale=0.1, **settings), CELL, 0).std() < plain.std() / 2


def test_times_are_the_cells_own() -> None:
    settings = TimeSettings()
    assert torch.equal(draw_times(settings, CELL, 0), draw_times(settings, Cell(0, 3, 1, 4000), 0))
    assert not torch.equal(draw_times(settings, CELL, 0), draw_times(settings, Cell(0, 3, 2, 4000), 0))
