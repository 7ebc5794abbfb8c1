"""Run directories are locked against a second start, and found by any path a user gives."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gfgw_prod.checkpoint.finding import find_checkpoints
from gfgw_prod.checkpoint.run_directory import prepare_directory
from gfgw_prod.checkpoint.run_settings import BESIDE, FILE, checkpoint_settings, file_to_read, file_to_write, recorded
from gfgw_prod.checkpoint.storages import open_storages
from gfgw_prod.process import run_lock
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.reading import as_yaml, resolve, write_yaml
from gfgw_prod.settings.running import CheckpointSettings

from ..checkpoints import Keeper


def test_directory_in_use_on_this_host_is_refused_until_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gfgw_prod.checkpoint.run_directory.LOCK_SECONDS", 0.5)
    lines: list[str] = []
    lock = prepare_directory(tmp_path, lines.append)
    assert lock is not None
    with pytest.raises(UserError, match=r"in use by process \d+"):
        prepare_directory(tmp_path, lines.append)
    lock.close()
    again = prepare_directory(tmp_path, lines.append)
    assert again is not None
    again.close()
    assert not lines


def test_launcher_takes_the_lock_over_from_its_ranks_and_only_these_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gfgw_prod.checkpoint.run_directory.LOCK_SECONDS", 0.1)
    first = prepare_directory(tmp_path, print)
    assert first is not None
    threading.Thread(target=run_lock.hold_for_job, args=(tmp_path, "mine")).start()
    with pytest.raises(UserError, match="in use"):
        prepare_directory(tmp_path, print)
    first.close()
    while not run_lock._held:
        time.sleep(0.01)
    with run_lock._held.pop():
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            prepare_directory(tmp_path, print)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
        with pytest.raises(UserError, match="in use"):
            prepare_directory(tmp_path, print)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
        assert prepare_directory(tmp_path, pytest.fail) is None  # another node's launcher
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setattr(os, "getppid", os.getpid)
        assert prepare_directory(tmp_path, pytest.fail) is None  # this rank's own


@pytest.mark.parametrize("holder", [{"host": "another", "pid": 7}, {"pid": 7, "job": "of mine"}], ids=["host", "job"])
def test_directory_held_by_a_frozen_predecessor_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: dict[str, Any]
) -> None:
    monkeypatch.setattr("gfgw_prod.checkpoint.run_directory.LOCK_SECONDS", 0.5)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "of mine")
    lines: list[str] = []
    lock = prepare_directory(tmp_path, lines.append)
    assert lock is not None
    said = json.loads((tmp_path / ".lock").read_text())
    (tmp_path / ".lock").write_text(json.dumps({**said, **holder}))
    assert prepare_directory(tmp_path, lines.append) is None
    lock.close()
    assert len(lines) == 1
    assert "taking over from process 7" in lines[0]


def test_second_start_under_plain_torchrun_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gfgw_prod.checkpoint.run_directory.LOCK_SECONDS", 0.5)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's value for a job without a name
    lock = prepare_directory(tmp_path, print)
    assert lock is not None
    with pytest.raises(UserError, match="in use"):
        prepare_directory(tmp_path, print)
    lock.close()


def test_upload_to_the_root_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.upload_to .* is the same as checkpoint\.root"):
        open_storages(CheckpointSettings(upload_to=str(tmp_path / "checkpoints")), tmp_path)


def write_settings(run_dir: Path, named: str, root: str) -> None:
    """Write what a run with this ``run.dir`` and ``checkpoint.root``, started from here, records."""
    config = resolve({"run": {"dir": named}, "checkpoint": {"root": root}})
    run_dir.mkdir(parents=True, exist_ok=True)
    write_yaml(recorded(config), file_to_write(run_dir))


@pytest.mark.parametrize("named", ["a", "{here}/a", "./x/../a"], ids=["relative", "absolute", "roundabout"])
@pytest.mark.parametrize("root", ["a/ck", "{here}/a/ck"], ids=["relative", "absolute"])
def test_copied_run_has_its_own_checkpoints_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, root: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_settings(tmp_path / "a", named.format(here=tmp_path), root.format(here=tmp_path))
    copy = tmp_path / "far" / "away" / "b"
    shutil.copytree(tmp_path / "a", copy)
    monkeypatch.chdir("/")
    assert checkpoint_settings(tmp_path / "a").root == str(tmp_path / "a" / "ck")
    assert checkpoint_settings(copy).root == str(copy / "ck")


def test_checkpoints_outside_of_a_run_are_found_from_any_directory_and_after_a_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_settings(tmp_path / "a", "a", "elsewhere/ck")
    (tmp_path / "moved").mkdir()
    (tmp_path / "a").rename(tmp_path / "moved" / "a")
    monkeypatch.chdir("/")
    assert checkpoint_settings(tmp_path / "moved" / "a").root == str(tmp_path / "elsewhere" / "ck")


def test_settings_of_an_older_version_are_relative_to_where_the_run_was_started(tmp_path: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    write_yaml(resolve({"run": {"dir": "runs/a"}, "checkpoint": {"root": "ck"}}), tmp_path / "runs" / "a" / FILE)
    assert checkpoint_settings(tmp_path / "runs" / "a").root == str(tmp_path / "ck")


@pytest.mark.parametrize("root", ["", "memory://bucket/run"])
def test_default_place_and_urls_are_recorded_as_they_are(tmp_path: Path, root: str) -> None:
    write_settings(tmp_path, "a", root)
    assert checkpoint_settings(tmp_path).root == root


def test_checkpoints_in_the_directory_of_another_run_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        lock = prepare_directory(tmp_path / name, print)
        assert lock is not None
        lock.close()
    settings = CheckpointSettings(root=str(tmp_path / "a" / "ck"))
    assert len(open_storages(settings, tmp_path / "a", make=True)) == 1
    with pytest.raises(UserError, match=r"checkpoint\.root .* lies in the directory of another run, .*/a;"):
        open_storages(settings, tmp_path / "b", make=True)


@pytest.mark.parametrize("content", ["# my notes\n", "", "not: [yaml", "run:\n  dir: a\n"])
def test_file_of_settings_that_no_run_wrote_is_not_replaced(tmp_path: Path, content: str) -> None:
    theirs = tmp_path / FILE
    theirs.write_text(content or f"# mine\n{as_yaml(resolve({}))}")
    for seed in (1, 2):
        write_yaml(resolve({"seed": seed}), file_to_write(tmp_path))
    assert file_to_read(tmp_path) == tmp_path / BESIDE
    assert "seed: 2" in (tmp_path / BESIDE).read_text()
    assert theirs.read_text().startswith(content or "# mine")


@pytest.mark.parametrize("name", ["samples.png", "stats.jsonl"])
def test_directory_with_a_file_that_no_run_wrote_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}, which no run has written"):
        prepare_directory(tmp_path, print)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_run_replaces_its_own_file_of_settings(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_yaml(resolve({"seed": seed}), file_to_write(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert "seed: 2" in (tmp_path / FILE).read_text()


def test_run_and_checkpoint_directories_are_both_found(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = Path(keeper.storage.root).parent
    one = run_dir / "checkpoints" / "step-00000001"
    assert [found.step for found in find_checkpoints(run_dir)] == [1, 2]
    assert [found.step for found in find_checkpoints(one)] == [1]
    monkeypatch.chdir(one.parent)
    assert [found.step for found in find_checkpoints(Path(one.name))] == [1]
    monkeypatch.chdir(one)
    assert [found.step for found in find_checkpoints(Path())] == [1]
    with pytest.raises(UserError, match="does not exist"):
        find_checkpoints(run_dir / "nothing")
    (run_dir / "something").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_checkpoints(run_dir / "something")
