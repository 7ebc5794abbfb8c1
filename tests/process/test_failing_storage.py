"""Real file systems that are full, read-only or slow: training goes on, and earlier checkpoints stay."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gfgw_prod.process.exit_codes import CRASH_LOOP, NoProgressError

from ..checkpoints import Keeper, assert_holds, choose, state, steps
from . import runs

ROWS = 10_000  # 640 kB in all
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting needs root")


def do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a file system on a new directory until the end of the test."""
    with ExitStack() as stack:

        def mounted(*how: str) -> Path:
            place = tmp_path / "mounted"
            place.mkdir()
            do("mount", *how, str(place))
            stack.callback(do, "umount", "--lazy", str(place))
            return place

        yield mounted


@contextmanager
def no_file_larger_than(limit: int) -> Iterator[None]:
    """Within, writes of this process beyond the limit fail with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_next_save_fails(keeper: Keeper, words: str) -> None:
    """Assert that the next save fails, with these words in the log, and changes nothing."""
    before = steps(keeper.storage)
    keeper.save(before[-1] + 1, rows=ROWS)
    assert steps(keeper.storage) == before
    assert words in keeper.lines[-1]
    assert keeper.lines[-1].startswith(f"checkpoint of step {before[-1] + 1} was not saved: ")
    assert keeper.figures()["run/checkpoint_failures"] == len(keeper.lines)
    found, lines = choose(keeper.storage)
    assert_holds(found, before[-1], state(before[-1], ROWS))
    assert not lines


def assert_next_save_succeeds(keeper: Keeper) -> None:
    step = steps(keeper.storage)[-1] + 1
    keeper.save(step, rows=ROWS)
    assert_holds(choose(keeper.storage)[0], step, state(step, ROWS))


@NEEDS_ROOT
def test_lack_of_space_is_logged_before_anything_is_written(mount: Callable[..., Path]) -> None:
    root = mount("-t", "tmpfs", "-o", "size=6m", "tmpfs")
    keeper = Keeper(root, keep=5)
    keeper.save(1, 2, rows=ROWS)
    filler = root / "filler"
    filler.write_bytes(bytes(4 << 20))
    assert_next_save_fails(keeper, "MB are free in")
    assert_next_save_fails(keeper, "it takes")
    filler.unlink()
    assert_next_save_succeeds(keeper)


@NEEDS_ROOT
def test_run_whose_disk_fills_up_logs_it_and_ends_with_the_same_weights(
    mount: Callable[..., Path], reference: Path
) -> None:
    place = mount("-t", "tmpfs", "-o", "size=24m", "tmpfs")
    run_dir, filler = place / "run", place / "filler"
    process = runs.start(runs.training(run_dir, "--resilience.max-no-progress", "100", *runs.UNHURRIED))
    runs.wait_until(lambda: runs.last_step(run_dir) >= 1, process)
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 12)):
            pass
    said = runs.hear(process, "metrics cannot be written")
    assert "Traceback" not in said
    filler.unlink()
    outcome = runs.outcome_of(process)
    assert outcome.code == 0, said + outcome.stderr
    assert runs.digests(run_dir)[runs.STEPS] == runs.digests(reference)[runs.STEPS]


@NEEDS_ROOT
def test_disk_that_fills_up_during_a_save_is_logged_and_survived(mount: Callable[..., Path]) -> None:
    root = mount("-t", "tmpfs", "-o", "size=100m,nr_inodes=22", "tmpfs")
    keeper = Keeper(root, keep=1)  # 3 inodes, and 6 for each of three checkpoints: one is left
    keeper.save(1, 2, rows=ROWS)
    (root / "filler").touch()
    (root / "another").touch()
    assert_next_save_fails(keeper, "No space left on device")
    (root / "filler").unlink()
    (root / "another").unlink()
    assert_next_save_succeeds(keeper)


def test_failed_write_is_logged_and_survived(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    keeper.save(1, 2, rows=ROWS)
    for limit in (1, 1000, 200_000):
        keeper = Keeper(tmp_path)  # which counts failures from zero
        with no_file_larger_than(limit):
            assert_next_save_fails(keeper, "File too large")
    assert_next_save_succeeds(keeper)


@NEEDS_ROOT
def test_file_system_that_turns_read_only_is_logged_and_survived(mount: Callable[..., Path]) -> None:
    root = mount("-t", "tmpfs", "-o", "size=6m", "tmpfs")
    keeper = Keeper(root)
    keeper.save(1, rows=ROWS)
    do("mount", "-o", "remount,ro", str(root))
    assert_next_save_fails(keeper, "Read-only file system")
    do("mount", "-o", "remount,rw", str(root))
    assert_next_save_succeeds(keeper)


@NEEDS_ROOT
@pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="mkfs.ext4 is not there")
def test_slow_disk_blocks_training_only_while_a_save_waits_for_the_one_before(
    mount: Callable[..., Path], tmp_path: Path
) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    do("mkfs.ext4", "-q", str(image))
    keeper = Keeper(mount("-o", "loop,sync,dirsync", str(image)))  # every block waits for the disk
    shares = []
    for step in (1, 2, 3):  # the share of one may be large because others have the processor
        started = time.monotonic()
        keeper.start(step, state(step, ROWS))
        blocked = time.monotonic() - started
        keeper.saver.join()
        shares.append(blocked / (time.monotonic() - started))
    assert min(shares) < 0.5
    keeper.start(4, state(4, ROWS))
    keeper.start(5, state(5, ROWS))  # waits for 4, which is not lost
    keeper.saver.join()
    assert steps(keeper.storage)[-2:] == [4, 5]
    assert_holds(choose(keeper.storage)[0], 5, state(5, ROWS))


def test_too_many_failures_in_a_row_end_the_run(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, max_failures=2)
    keeper.save(1, rows=ROWS)
    with no_file_larger_than(1000):
        keeper.save(2, rows=ROWS)
    keeper.save(3, rows=ROWS)  # a success resets the count
    with no_file_larger_than(1000):
        keeper.save(4, rows=ROWS)
        with pytest.raises(NoProgressError, match=r"2 checkpoints in a row could not be saved; .* is step-00000003"):
            keeper.save(5, rows=ROWS)
    assert_holds(choose(keeper.storage)[0], 3, state(3, ROWS))


@NEEDS_ROOT
def test_run_on_a_full_disk_ends_with_its_exit_code_and_resumes_when_there_is_space(
    mount: Callable[..., Path], reference: Path, tmp_path: Path
) -> None:
    root = mount("-t", "tmpfs", "-o", "size=100m,nr_inodes=17", "tmpfs")
    run_dir = tmp_path / "run"
    elsewhere = ("--checkpoint.root", str(root))
    outcome = runs.execute(runs.elastic(run_dir, *elsewhere), {"NPROC": "2"})
    assert outcome.code == CRASH_LOOP, outcome.stderr
    told = [line for line in outcome.stderr.splitlines() if "was not saved" in line]
    assert len(told) == 3
    assert all("No space left on device" in line for line in told)
    assert "gfgw: 3 checkpoints in a row could not be saved" in outcome.stderr
    assert "Make room" in outcome.stderr
    assert "restart" not in outcome.stderr
    assert [
        record["run/checkpoint_failures"] for record in runs.records(run_dir) if "run/checkpoint_failures" in record
    ]
    do("mount", "-o", "remount,nr_inodes=100", str(root))
    assert "resumed" in runs.train(run_dir, *elsewhere, ranks=2).stderr
    assert runs.digests(run_dir)[runs.STEPS] == runs.digests(reference)[runs.STEPS]
    assert runs.losses(run_dir) == runs.losses(reference)
