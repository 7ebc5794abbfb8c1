"""Run directories are locked against a second start, and found by any path a user gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gfgw_prod.checkpoint.finding import find_checkpoints
from gfgw_prod.checkpoint.run_directory import prepare_directory
from gfgw_prod.checkpoint.storages import open_storages
from gfgw_prod.process.exit_codes import UserError
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


def test_run_and_checkpoint_directories_are_both_found(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = Path(keeper.storage.root).parent
    one = run_dir / "checkpoints" / "step-00000001"
    assert [found.step for found in find_checkpoints(run_dir)] == [1, 2]
    assert [found.step for found in find_checkpoints(one)] == [1]
    monkeypatch.chdir(one.parent)
    assert [found.step for found in find_checkpoints(Path(one.name))] == [1]
    monkeypatch.chdir(one)
    assert [found.step for found in find_checkpoints(Path())] == [1]
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_checkpoints(run_dir / "nothing")
