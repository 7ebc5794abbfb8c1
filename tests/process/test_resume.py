"""A run that was stopped, killed, resized or damaged ends with the weights of an undisturbed one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from . import runs


def contents(directory: Path) -> dict[str, tuple[int, str]]:
    return {
        str(file.relative_to(directory)): (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in directory.rglob("*")
        if file.is_file()
    }


def test_run_that_changes_ranks_twice_ends_with_the_same_weights(reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    runs.train(run_dir, steps=2, ranks=2)
    assert "step-00000002" in runs.train(run_dir, steps=4).stderr
    last = runs.train(run_dir, "--distributed.strategy", "fsdp", steps=6, ranks=3)
    assert "step-00000004" in last.stderr
    assert runs.digests(run_dir) == runs.digests(reference)
    assert runs.losses(run_dir) == runs.losses(reference)
    runs.assert_each_metric_has_each_step_once(run_dir)


def test_killed_run_ends_with_the_same_weights(reference: Path, killed_and_resumed: Path) -> None:
    assert runs.digests(killed_and_resumed) == runs.digests(reference)
    assert runs.losses(killed_and_resumed) == runs.losses(reference)
    runs.assert_each_metric_has_each_step_once(killed_and_resumed)


def test_finished_run_has_nothing_to_do_and_changes_no_file(copy_of_reference: Path) -> None:
    before = contents(copy_of_reference / "checkpoints")
    recorded = runs.records(copy_of_reference)
    outcome = runs.train(copy_of_reference)
    assert "nothing to do" in outcome.stderr
    assert contents(copy_of_reference / "checkpoints") == before
    assert runs.records(copy_of_reference) == recorded


def test_damaged_checkpoint_is_skipped_quarantined_and_replaced(reference: Path, copy_of_reference: Path) -> None:
    shard = runs.newest_shard(copy_of_reference)
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)

    outcome = runs.train(copy_of_reference)
    told = [line for line in outcome.stderr.splitlines() if "is damaged" in line]
    assert len(told) == 1
    assert f"step-{runs.STEPS:08d}" in told[0]
    assert "from step-00000004" in outcome.stderr
    kept = [file.read_bytes() for file in copy_of_reference.glob(f"checkpoints/*/{shard.name}")]
    assert damaged in kept
    assert runs.records(copy_of_reference)[-1].get("run/damaged_checkpoints", 1) == 1
    assert runs.digests(copy_of_reference) == runs.digests(reference)
    assert runs.losses(copy_of_reference) == runs.losses(reference)


def test_allowed_change_is_made_and_recorded(reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    runs.train(run_dir, steps=2)
    slower = ("--optimizer.lr", "1e-4")
    refused = runs.execute(runs.training(run_dir, *slower, steps=4)).complaint
    assert "optimizer.lr" in refused
    assert "run.allow_changes" in refused
    told = runs.train(run_dir, *slower, "--run.allow-changes", "true", steps=4).stderr
    assert "going on with optimizer.lr" in told
    runs.train(run_dir, *slower)  # an allowed change stays
    weights = runs.digests(run_dir)
    assert weights[2] == runs.digests(reference)[2]
    assert weights[runs.STEPS] != runs.digests(reference)[runs.STEPS]
    (recorded,) = runs.manifest(run_dir, runs.STEPS)["changes"]
    assert recorded["step"] == 2
    assert recorded["changes"][0].startswith("optimizer.lr")
    assert "changed after step 2: optimizer.lr" in runs.printed_by("inspect", str(run_dir))
