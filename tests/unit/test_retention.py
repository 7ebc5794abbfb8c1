"""Retention keeps the newest checkpoints, some for good, and the one to roll back to."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.checkpoint.manifest import encode
from gfgw_prod.checkpoint.storage import MANIFEST
from gfgw_prod.process.exit_codes import NoProgressError, UserError
from gfgw_prod.resilience.bad_numbers import NumberGuard, checkpoint_before_streak
from gfgw_prod.settings.running import ResilienceSettings

from ..checkpoints import ALONE, FACTS, Keeper, assert_holds, choose, names, steps


def test_newest_are_kept(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, keep=2)
    keeper.save(1, 2, 3)
    assert names(keeper) == ["step-00000002", "step-00000003"]


def test_one_of_every_interval_is_kept_for_good(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, keep=1, keep_every_kimg=3)
    keeper.save(*range(1, 11))
    assert steps(keeper.storage) == [3, 6, 9, 10]


def test_extra_saves_are_not_counted_and_are_removed_after_the_next(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, keep=2, keep_every_kimg=4)
    for step in range(1, 12):
        keeper.start(step, facts={**FACTS, "regular": step % 3 == 0})
    keeper.saver.join()
    assert steps(keeper.storage) == [6, 9, 11]


def test_newest_regular_checkpoint_before_bad_steps_stays(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, keep=1)
    for step in range(1, 9):
        keeper.start(step, facts={**FACTS, "regular": step != 3, "streak_from": min(step, 4)})
    keeper.saver.join()
    assert steps(keeper.storage) == [2, 8]


def test_checkpoint_to_roll_back_to_is_always_there(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, keep=1)
    keeper.save(1, 2, 3)
    assert steps(keeper.storage) == [2, 3]  # step 2 stays: steps after 3 may be bad, and then 3 may be too


def test_rollback_refuses_checkpoints_of_another_version(keeper: Keeper) -> None:
    guard = NumberGuard(ResilienceSettings())
    guard.skip()

    def roll_back() -> int:
        return checkpoint_before_streak(guard, 3, [keeper.storage], ALONE, keeper.lines.append).step

    assert roll_back() == 1
    written = keeper.storage.read(f"step-00000001/{MANIFEST}")
    keeper.storage.write(f"step-00000001/{MANIFEST}", b'{"format": 1, "step": 1, "files": {}}')
    with pytest.raises(UserError, match="is of format 1"):
        roll_back()
    keeper.storage.write(f"step-00000001/{MANIFEST}", written[:-9])
    with pytest.raises(NoProgressError, match="no checkpoint from before"):
        roll_back()


def test_damaged_checkpoints_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, keep=2)
    keeper.save(1, 2)
    keeper.storage.write("step-00000002/manifest.json", b"{}")
    keeper.save(3)
    assert steps(keeper.storage) == [1, 3]
    assert "step-00000002" in names(keeper)
    found, lines = choose(keeper.storage)
    assert_holds(found, 3)
    assert not lines  # step 2 is older than the chosen one


def test_checkpoint_with_a_lost_shard_is_not_counted_by_retention(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, keep=2)
    keeper.save(1, 2)
    next((tmp_path / "step-00000002").glob("*.distcp")).unlink()
    keeper.save(3)
    assert steps(keeper.storage) == [1, 2, 3]
    keeper.save(4)
    assert steps(keeper.storage) == [2, 3, 4]


def test_old_checkpoint_that_cannot_be_removed_or_read_is_no_failed_save(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, keep=1, max_failures=1)
    keeper.save(1)
    manifest = {**checkpoints_in(keeper.storage)[0].manifest, "format": 1}
    keeper.storage.write(f"step-00000001/{MANIFEST}", encode(manifest))
    keeper.save(2)
    if subprocess.run(["chattr", "+i", tmp_path / "step-00000002"], check=False, capture_output=True).returncode == 0:
        try:
            keeper.save(3, 4)
        finally:
            subprocess.run(["chattr", "-i", tmp_path / "step-00000002"], check=True)
        assert any("could not be removed" in line for line in keeper.lines)
    keeper.save(5)
    assert_holds(choose(keeper.storage)[0], 5)
    assert not any("was not saved" in line for line in keeper.lines)
