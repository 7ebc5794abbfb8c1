"""What a step of each shipped configuration has the host wait for, and how much it launches, of two cells at full size.

The limits are just above what was counted. A change that needs more launches has to say why.
"""

from __future__ import annotations

import json

import pytest

from gfgw_prod.settings.presets import presets

from ..process import runs
from .steps import counted_step

WAITS = {"training/feed.py:targets copy to the host": 1, "training/checked_step.py:_numbers read": 1}
MOST_LAUNCHES = {
    "digits": 1_400,
    "cifar10": 4_800,
    "seed_report": 7_400,
    # Consistency makes a pass to match and one for the nearer time.
    "imagenet64": 7_100,
    "pictures": 1_800,
    "pictures_network": 11_700,
}


@pytest.mark.parametrize(
    "preset", [name if name == "digits" else pytest.param(name, marks=pytest.mark.slow) for name in presets()]
)
def test_step_of_every_preset_waits_twice(preset: str) -> None:
    found = counted_step(preset, {"train": {"batch_size": 64, "cell_size": 32}})
    assert found.total.waits == WAITS
    assert found.launches <= MOST_LAUNCHES[preset]


@pytest.mark.slow
def test_dry_run_estimates_the_memory() -> None:
    # Of a step at t = 1, which keeps its passes.
    smaller = {"train": {"batch_size": 64, "one_step_share": 1.0}, "generator": {"num_blocks": 2}}
    found = counted_step("cifar10", smaller)
    changes = ("--train.batch-size", "64", "--train.one-step-share", "1", "--generator.num-blocks", "2")
    printed = runs.printed_by("train", "--config", "cifar10", *changes, "--dry-run", "--json")
    estimated = json.loads(printed)["memory_bytes_per_rank"]
    on_device = sum(size for part, size in estimated.items() if part != "table")
    assert found.most_bytes == pytest.approx(on_device, rel=0.15)
