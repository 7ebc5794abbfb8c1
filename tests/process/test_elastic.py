"""The elastic launcher: ranks of one machine, restarted after a crash, stopped for good by a wrong setting."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from . import runs

TWO_RANKS = {"NPROC": "2"}
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finding a rank's process needs /proc")


def test_two_ranks_train_the_weights_that_one_process_trains(reference: Path, tmp_path: Path) -> None:
    outcome = runs.execute(runs.elastic(tmp_path / "run", steps=2), TWO_RANKS)
    assert outcome.code == 0, outcome.stderr
    assert runs.digests(tmp_path / "run") == {2: runs.digests(reference)[2]}


@NEEDS_PROC
def test_run_whose_rank_was_killed_is_restarted_and_ends_with_the_same_weights(reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    agent = runs.start(runs.elastic(run_dir, *runs.UNHURRIED), TWO_RANKS)
    workers = runs.wait_until(lambda: len(found := runs.workers_of(agent.pid)) == 2 and found, agent)
    runs.kill_after_checkpoint(agent, run_dir, step=2, victim=workers[1])
    outcome = runs.outcome_of(agent)
    assert outcome.code == 0, outcome.stderr
    assert "restart 1 of 3" in outcome.stderr
    assert signal.SIGKILL.name in outcome.stderr
    assert "resumed" in outcome.stderr
    assert runs.digests(run_dir) == runs.digests(reference)
    assert runs.losses(run_dir) == runs.losses(reference)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NNODES", "two"),
        ("NNODES", "4:2"),
        ("NNODES", "2"),  # without RDZV_ENDPOINT
        ("NPROC", "0"),
        ("MAX_RESTARTS", "-1"),
        ("RDZV_TIMEOUT", "soon"),
        ("RDZV_LAST_CALL", "0"),
        ("GRACE_SECONDS", "0"),
        ("PYTHON", "/no/such/python"),
    ],
)
def test_wrong_variable_is_refused_in_one_line(tmp_path: Path, name: str, value: str) -> None:
    complaint = runs.execute(runs.elastic(tmp_path / "run"), {name: value}).complaint
    assert complaint.startswith("elastic.sh: ")
    assert name in complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--train.batch-size", "16"], "train.cell_size"),
        (["--train.batchsize", "16"], "train.batch_size"),
        (["--data.source", "cifar10", "--data.path", os.devnull], f"data.path {os.devnull}"),
    ],
    ids=["more ranks than cells", "unknown setting", "no data set"],
)
def test_wrong_setting_is_refused_once_for_all_ranks_and_not_restarted(
    tmp_path: Path, options: list[str], words: str
) -> None:
    complaint = runs.execute(runs.elastic(tmp_path / "run", *options), TWO_RANKS).complaint
    assert complaint.startswith("gfgw: ")
    assert words in complaint
