"""Two ranks on pretended GPUs, with gloo in the place of NCCL: what is sent lies where NCCL finds it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..process import runs

LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
SAVES = 3
GROUPS = 6  # all ranks, the background's two, copies and shards of the generator, the mesh of tables


@pytest.mark.parametrize("options", [(), ("--transport.scope", "subset", "--distributed.shard-ranks", "1")], ids=str)
def test_sharded_run_trains_and_saves_make_no_process_groups(tmp_path: Path, options: tuple[str, ...]) -> None:
    run_dir, saved = tmp_path / "run", ("--checkpoint.every-kimg", str(runs.EVERY_STEP_KIMG))
    strategy = ("--distributed.strategy", "fsdp", "--run.device", "cuda", "--telemetry.sample-grid", "2")
    trained = runs.training(run_dir, *strategy, *saved, *options, steps=SAVES)
    outcome = runs.execute([*LAUNCHER, "tests.gpu.rank", *trained[len(runs.GFGW) :]], cwd=runs.ROOT)
    assert outcome.code == 0, outcome.stderr
    assert sorted(runs.digests(run_dir)) == [1, 2, 3]
    groups, *_ = outcome.stdout.splitlines()[-1].split()
    assert int(groups) <= GROUPS  # newer torch makes fewer
