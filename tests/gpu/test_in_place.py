"""A rank on a pretended GPU is lost and replaced: the others free themselves from what they wait for, and go on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..process import runs

STEPS = 4
STEP_KIMG = runs.SMALL_BATCH / 1000
OPTIONS = (
    *(*runs.SMALL, "--train.total-kimg", str(STEPS * STEP_KIMG), "--run.device", "cuda"),
    *("--distributed.strategy", "fsdp", "--telemetry.sample-grid", "2", "--resilience.in-place", "true"),
)
HSDP = ("--distributed.shard-ranks", "1")
COPIES = ("--resilience.peer-copy-every-steps", "1")


def launched(run_dir: Path, *options: str, **surroundings: str) -> runs.Outcome:
    """Two ranks under the elastic launcher."""
    launcher = ("-m", "gfgw_prod.launcher", *runs.MEETS_ITSELF, "--nproc-per-node", "2", "--max-restarts", "3")
    rank = ("-m", "tests.gpu.rank", *runs.training(run_dir, *OPTIONS, *options)[len(runs.GFGW) :])
    return runs.execute([sys.executable, *launcher, *rank], surroundings)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    outcome = launched(run_dir, *HSDP)
    assert outcome.code == 0, outcome.stderr
    return run_dir


@pytest.mark.parametrize(
    ("options", "rank", "number"),
    [
        pytest.param(HSDP, 0, 8, id="HSDP, rank 0"),
        pytest.param(COPIES, 1, 8, id="fsdp"),
    ],
)
def test_rank_that_dies_in_a_step_is_replaced(
    undisturbed: Path, tmp_path: Path, options: tuple[str, ...], rank: int, number: int
) -> None:
    run_dir = tmp_path / "run"
    outcome = launched(run_dir, *options, DIES_AT=f"{rank} {number} {tmp_path / 'once'}")
    assert outcome.code == 0, outcome.stderr
    assert f"rank {rank} died of SIGKILL; replacement 1 of 3" in outcome.stderr
    assert "a lost rank was replaced; the run goes on after step" in outcome.stderr
    assert "resumed" not in outcome.stderr
    assert runs.digests(run_dir)[STEPS] == runs.digests(undisturbed)[STEPS]
    assert runs.losses(run_dir) == runs.losses(undisturbed)
    runs.assert_each_metric_has_each_step_once(run_dir, STEPS)
