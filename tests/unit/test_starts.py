"""Crashed starts are counted, orderly ones are not, and a new checkpoint resets the count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gfgw_prod.checkpoint.local_storage import LocalStorage
from gfgw_prod.distributed.world import World
from gfgw_prod.process import signals
from gfgw_prod.process.exit_codes import NoProgressError, UserError
from gfgw_prod.resilience.starts import StartCounter

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def nothing_left_to_do_before_exit() -> Iterator[None]:
    yield
    signals.before_exit.clear()


def start(run_dir: Path, ends: type[BaseException] | None, most: int = 2) -> None:
    """Start once, and end with an error or in an orderly way."""
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    try:
        with StartCounter(run_dir, most, ALONE) as starts:
            starts.count([LocalStorage(run_dir / "checkpoints")])
            if ends is not None:
                raise ends
    except (RuntimeError, UserError, KeyboardInterrupt) as error:
        if type(error) is not ends:
            raise


def add_checkpoint(run_dir: Path, step: int) -> None:
    (run_dir / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)


def test_one_start_too_many_is_refused_and_so_are_all_later_ones(tmp_path: Path) -> None:
    for _ in range(3):
        start(tmp_path, RuntimeError)
    for _ in range(2):
        with pytest.raises(NoProgressError, match=r"3 starts in a row .* remove .*starts\.json"):
            start(tmp_path, None)
    (tmp_path / "starts.json").unlink()  # the cause is fixed
    start(tmp_path, None)


@pytest.mark.parametrize("orderly", [None, UserError, KeyboardInterrupt])
def test_an_orderly_end_is_no_crash_and_keeps_the_count(tmp_path: Path, orderly: type[BaseException] | None) -> None:
    for _ in range(5):
        start(tmp_path, orderly)
    for _ in range(3):
        start(tmp_path, RuntimeError)
        start_count = (tmp_path / "starts.json").read_text()
    with pytest.raises(NoProgressError):
        start(tmp_path, orderly)
    assert (tmp_path / "starts.json").read_text() == start_count


def test_a_new_checkpoint_resets_the_count_and_a_lost_one_does_not(tmp_path: Path) -> None:
    for step in range(1, 4):
        for _ in range(3):
            start(tmp_path, RuntimeError)
        add_checkpoint(tmp_path, step)
    start(tmp_path, RuntimeError)
    start(tmp_path, RuntimeError)
    (tmp_path / "checkpoints" / "step-00000003").rmdir()
    start(tmp_path, RuntimeError)
    with pytest.raises(NoProgressError):
        start(tmp_path, None)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": null, "starts": 9}', '{"starts": 9}'])
def test_an_unreadable_file_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "starts.json").write_text(content)
    start(tmp_path, None)


def test_a_storage_that_cannot_be_listed_is_named_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with (
        StartCounter(tmp_path, 2, ALONE) as starts,
        pytest.raises(UserError, match=r"checkpoints in .* cannot be listed: Not"),
    ):
        starts.count([LocalStorage(tmp_path / "checkpoints")])


def test_a_count_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "starts.json").mkdir()
    for _ in range(5):
        start(tmp_path, RuntimeError)
