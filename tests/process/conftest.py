"""Runs that several files look at. They are finished: a test that goes on with one does so in a copy."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest

from . import runs


@pytest.fixture(scope="package", autouse=True)
def no_long_collections() -> None:
    """What unit tests of this process left is looked at once more, and never again.

    A collection of garbage that walks through all of it stops every thread for up to seven seconds, in which a run that
    is to be struck comes to its end.
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
    """The undisturbed run, to go on with or to damage."""
    return shutil.copytree(reference, tmp_path / "run")


@pytest.fixture(scope="session")
def killed_and_resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed with SIGKILL between two checkpoints, then launched again with the same command."""
    run_dir = tmp_path_factory.mktemp("killed") / "run"
    command = runs.training(run_dir, *runs.UNHURRIED)
    process = runs.start(command)
    runs.kill_after_checkpoint(process, run_dir, step=2)
    assert runs.outcome_of(process).code == -9
    again = runs.execute(command)
    assert again.code == 0, again.stderr
    assert "resumed" in again.stderr
    return run_dir
