"""A run that is given some minutes ends in order when they are over, and the same command goes on from there."""

from __future__ import annotations

from pathlib import Path

from . import runs

NO_TIME = ("--train.max-minutes", "1e-9", "--checkpoint.every-kimg", "1000")


def test_run_out_of_time_is_saved_and_ends_with_the_same_weights(reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for ranks, step in ((2, 2), (1, 3)):  # two ranks agree a step later
        outcome = runs.train(run_dir, *NO_TIME, ranks=ranks)
        assert "(to 0.576 kimg; train.max_minutes is over)" in outcome.stderr
        assert max(runs.digests(run_dir)) == runs.last_step(run_dir) == step
        assert (run_dir / "samples.png").exists()
    runs.train(run_dir)
    assert runs.digests(run_dir)[runs.STEPS] == runs.digests(reference)[runs.STEPS]
    assert runs.losses(run_dir) == runs.losses(reference)
