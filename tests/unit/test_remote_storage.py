"""Checkpoints at URLs, and uploads in the background."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from gfgw_prod.checkpoint.choosing import quarantined
from gfgw_prod.checkpoint.finding import find_checkpoints
from gfgw_prod.checkpoint.remote_storage import RemoteStorage
from gfgw_prod.checkpoint.storage import MANIFEST
from gfgw_prod.checkpoint.storages import open_storage, open_storages
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.running import CheckpointSettings

from ..checkpoints import FACTS, Keeper, assert_holds, choose, state, steps


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A root of this test alone."""
    place = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else f"file://{tmp_path}/root"
    yield place
    storage = open_storage(place)
    assert isinstance(storage, RemoteStorage)
    storage.fs.rm(storage.base, recursive=True)


def test_url_holds_checkpoints_as_a_directory_does(url: str) -> None:
    keeper = Keeper(url, keep=2)
    keeper.save(1, 2, 3)
    assert steps(keeper.storage) == [2, 3]
    found, lines = choose(keeper.storage)
    assert_holds(found, 3)
    assert not lines
    assert [each.step for each in find_checkpoints(url)] == [2, 3]
    assert found is not None
    assert [each.step for each in find_checkpoints(f"{url}/{found.name}")] == [3]


def test_damage_behind_a_url_is_skipped_and_the_step_saved_again(url: str) -> None:
    keeper = Keeper(url)
    keeper.save(1, 2)
    newest = choose(keeper.storage)[0]
    assert newest is not None
    shard = next(name for name in keeper.storage.names(newest.name) if name.endswith(".distcp"))
    content = bytearray(keeper.storage.read(f"{newest.name}/{shard}"))
    content[len(content) // 2] ^= 1
    keeper.storage.write(f"{newest.name}/{shard}", bytes(content))
    found, lines = choose(keeper.storage)
    assert_holds(found, 1)
    assert len(lines) == 1
    keeper.save(2)
    found, lines = choose(keeper.storage)
    assert_holds(found, 2)
    assert not lines


def test_unfinished_save_behind_a_url_is_no_checkpoint(url: str) -> None:
    keeper = Keeper(url)
    keeper.save(1, 2)
    newest = choose(keeper.storage)[0]
    assert newest is not None
    keeper.storage.rename(f"{newest.name}/{MANIFEST}", f"{newest.name}/unfinished")
    assert steps(keeper.storage) == [1]
    found, lines = choose(keeper.storage)
    assert_holds(found, 1)
    assert not lines
    successor = Keeper(url)
    assert newest.name not in successor.storage.names()


def test_unfinished_first_save_behind_a_url_blocks_nothing(url: str) -> None:
    keeper = Keeper(url)
    keeper.save(1)
    (name,) = keeper.storage.committed()
    keeper.storage.rename(f"{name}/{MANIFEST}", f"{name}/unfinished")
    successor = Keeper(url)
    assert choose(successor.storage) == (None, [])
    successor.save(1)
    assert_holds(choose(successor.storage)[0], 1)


def test_damaged_checkpoint_behind_a_url_is_logged_once_and_kept(url: str) -> None:
    keeper = Keeper(url)
    keeper.save(1, 2)
    newest = keeper.storage.committed()[-1]
    keeper.storage.write(f"{newest}/{MANIFEST}", b"{}")
    assert len(choose(keeper.storage)[1]) == 1
    successor = Keeper(url)
    found, lines = choose(successor.storage)
    assert_holds(found, 1)
    assert not lines
    assert quarantined([successor.storage]) == [newest]


def test_checkpoint_that_was_not_uploaded_is_uploaded_by_the_next_start(url: str, tmp_path: Path) -> None:
    Keeper(tmp_path / "local").save(1)
    keeper = Keeper(tmp_path / "local", url)
    found, _ = choose(keeper.storage)
    assert found is not None
    keeper.saver.resume_from(found)
    keeper.saver.finish()
    assert_holds(choose(open_storage(url))[0], 1)


def test_looking_makes_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_checkpoints(f"file://{tmp_path}/typo/run")
    assert not (tmp_path / "typo").exists()


def test_writer_behind_a_url_that_wakes_up_late_is_fenced_off(url: str) -> None:
    keeper = Keeper(url)
    keeper.save(1)
    Keeper(url).save(2)
    with pytest.raises(UserError, match="taken over"):
        keeper.save(3)
    assert steps(keeper.storage) == [1, 2]


def test_run_on_a_new_disk_resumes_from_uploaded_checkpoints(url: str, tmp_path: Path) -> None:
    local = tmp_path / "local"
    keeper = Keeper(local, url, keep=2)
    keeper.save(1, 2, 3)
    keeper.saver.finish()
    distant = open_storage(url)
    assert steps(distant)[-1] == 3
    assert 0 < len(steps(distant)) <= 2
    assert keeper.figures()["run/uploads"] >= 1
    shutil.rmtree(local)
    successor = Keeper(local, url)
    found, lines = choose(successor.storage, distant)
    assert_holds(found, 3)
    assert not lines
    successor.save(4)
    successor.saver.finish()
    assert_holds(choose(successor.storage, distant)[0], 4)
    assert steps(distant)[-1] == 4


def test_uploads_of_extra_saves_do_not_displace_the_one_before_bad_steps(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    keeper = Keeper(tmp_path / "local", target, keep=1)
    for step in range(1, 7):
        keeper.start(step, facts={**FACTS, "regular": step in (1, 2, 5), "streak_from": min(step, 3)})
        keeper.saver.join()
        while not keeper.figures().get("run/uploads"):
            time.sleep(0.01)
    keeper.saver.finish()
    assert steps(open_storage(target)) == steps(keeper.storage) == [2, 5, 6]


def test_local_checkpoint_is_preferred_to_its_copy_and_a_newer_copy_to_it(tmp_path: Path) -> None:
    local, distant = Keeper(tmp_path / "a"), Keeper(tmp_path / "b")
    local.save(1, 2)
    distant.save(1, 2)
    found = choose(local.storage, distant.storage)[0]
    assert found is not None
    assert found.storage is local.storage
    distant.save(3)
    found = choose(local.storage, distant.storage)[0]
    assert found is not None
    assert (found.step, found.storage) == (3, distant.storage)


def test_failed_upload_is_logged_and_counted_and_does_not_disturb_saves(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    keeper = Keeper(tmp_path / "local", f"file://{target}")
    shutil.rmtree(target)
    target.write_text("in the way")
    keeper.save(1)
    keeper.start(2, state(2))
    keeper.saver.finish()
    assert steps(keeper.storage) == [1, 2]
    assert any("step-00000002 could not be uploaded" in line for line in keeper.lines)
    assert keeper.figures()["run/upload_failures"] >= 1


def test_url_of_an_unknown_kind_is_refused_by_setting(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.upload_to nosuch://x cannot be used"):
        open_storages(CheckpointSettings(upload_to="nosuch://x"), tmp_path)
