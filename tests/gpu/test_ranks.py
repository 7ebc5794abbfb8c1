"""Two ranks on pretended GPUs, with gloo in the place of NCCL: what is sent lies where NCCL finds it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..process import runs

SAVES = 3
STEP_KIMG = runs.SMALL_BATCH / 1000
SHORT = (*runs.SMALL, "--train.total-kimg", str(SAVES * STEP_KIMG), "--checkpoint.every-kimg", str(STEP_KIMG))
GROUPS = 6  # all ranks, the background's two, copies and shards of the generator, the mesh of tables


@pytest.mark.parametrize("options", [(), ("--transport.scope", "subset", "--distributed.shard-ranks", "1")], ids=str)
def test_sharded_run_trains_and_saves_make_no_process_groups(tmp_path: Path, options: tuple[str, ...]) -> None:
    strategy = ("--distributed.strategy", "fsdp", "--run.device", "cuda", "--telemetry.sample-grid", "2")
    trained = runs.training(tmp_path / "run", *SHORT, *strategy, *options)[len(runs.GFGW) :]
    outcome = runs.execute_ranks(2, [sys.executable, "-m", "tests.gpu.rank", *trained])
    assert outcome.code == 0, outcome.stderr
    assert sorted(runs.digests(tmp_path / "run")) == [1, 2, 3]
    groups, *_ = outcome.stdout.splitlines()[-1].split()
    assert int(groups) <= GROUPS  # newer torch makes fewer
