"""Finished runs that several files read. A test that resumes one copies it first."""

from __future__ import annotations

import gc
import shutil
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


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an undisturbed run of one process."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    runs.train(run_dir)
    return run_dir


@pytest.fixture
def copy_of_reference(reference: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run, to resume or to damage."""
    return shutil.copytree(reference, tmp_path / "run")


@pytest.fixture(scope="session")
def killed_and_resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed with SIGKILL between two checkpoints, then started again with the same command."""
    run_dir = tmp_path_factory.mktemp("killed") / "run"
    command = runs.training(run_dir, *runs.UNHURRIED)
    process = runs.start(command)
    runs.kill_after_checkpoint(process, run_dir, step=2)
    assert runs.outcome_of(process).code == -9
    again = runs.execute(command)
    assert again.code == 0, again.stderr
    assert "resumed" in again.stderr
    return run_dir
