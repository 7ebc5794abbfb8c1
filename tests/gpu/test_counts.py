"""What a step of each shipped configuration has the host wait for, and how much it launches, of two cells at full size.

The limits are just above what was counted. A change that needs more launches has to say why.
"""

from __future__ import annotations

import pytest

from .steps import counted_step

WAITS = {"training/feed.py:targets copy to the host": 1, "training/checked_step.py:_numbers read": 1}


@pytest.mark.parametrize(
    ("preset", "most_launches"), [("digits", 2_100), ("cifar10", 16_000), ("seed_report", 40_000), ("imagenet64", 50_000)]
)
def test_step_waits_twice(preset: str, most_launches: int) -> None:
    size = {"digits": 64}.get(preset, 32)
    found = counted_step(preset, {"train": {"batch_size": 2 * size}})
    assert found.total.waits == WAITS
    assert found.launches <= most_launches
