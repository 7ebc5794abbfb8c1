"""Finished runs that several files and workers read. A test that resumes one copies it first."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from . import runs


@pytest.fixture(scope="package", autouse=True)
def no_long_collections() -> None:
    """Exclude what unit tests have left in this process from garbage collection.

    A full collection would stop every thread for up to seven seconds, in which the run under test may finish.
    """
    gc.collect()
    gc.freeze()


def trained_once(tmp_path_factory: pytest.TempPathFactory, name: str, train: Callable[[Path], object]) -> Path:
    """A run directory that the first worker to need it makes with ``train``. The others wait for it."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a directory in the session's
        place = place.parent
    run_dir, is_made = place / name / "run", place / name / "is-made"
    run_dir.parent.mkdir(exist_ok=True)
    with (run_dir.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_made.exists():
            shutil.rmtree(run_dir, ignore_errors=True)  # of a worker that failed
            train(run_dir)
            is_made.touch()
    return run_dir


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an undisturbed run of one process."""
    return trained_once(tmp_path_factory, "reference", runs.train)


@pytest.fixture
def copy_of_reference(reference: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run, to resume or to damage."""
    return shutil.copytree(reference, tmp_path / "run")


@pytest.fixture(scope="session")
def killed_and_resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed with SIGKILL between two checkpoints, then started again with the same command."""
    return trained_once(tmp_path_factory, "killed", train_killed_and_resumed)


def train_killed_and_resumed(run_dir: Path) -> None:
    command = runs.training(run_dir, *runs.UNHURRIED)
    process = runs.start(command)
    runs.kill_after_checkpoint(process, run_dir, step=2)
    assert runs.outcome_of(process).code == -9
    again = runs.execute(command)
    assert again.code == 0, again.stderr
    assert "resumed" in again.stderr
