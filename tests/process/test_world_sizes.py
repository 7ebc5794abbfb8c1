"""The weights depend neither on the number of ranks nor on how the generator is spread over them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from . import runs

RESAMPLES = ("--generator.channel-mult", "[1,2]")  # a network of two levels
# Kept passes and recomputed blocks do not change the weights either.
WAITING = ("--train.kept-passes", "9", "--generator.checkpoint-activations", "true")
SHARDED = ("--distributed.strategy", "fsdp")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of one process that trains a network of two levels."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    runs.train(run_dir, *RESAMPLES)
    return run_dir


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (3, WAITING),
        (2, SHARDED),
        (4, (*SHARDED, "--distributed.shard-ranks", "2", *WAITING)),
    ],
    ids=["ddp", "fsdp", "hsdp"],
)
def test_ranks_train_the_weights_that_one_process_trains(
    alone: Path, tmp_path: Path, ranks: int, options: tuple[str, ...]
) -> None:
    runs.train(tmp_path / "run", *RESAMPLES, *options, ranks=ranks)
    assert runs.digests(tmp_path / "run") == runs.digests(alone)
    assert runs.losses(tmp_path / "run") == runs.losses(alone)


def test_torchs_debug_checks_leave_the_weights_alone(reference: Path, tmp_path: Path) -> None:
    command = runs.training(tmp_path / "run", steps=2, ranks=2)
    checked = runs.execute(command, {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"})
    assert checked.code == 0, checked.stderr
    assert runs.digests(tmp_path / "run")[2] == runs.digests(reference)[2]


def test_half_precision_trains_the_same_weights_on_any_number_of_ranks(reference: Path, tmp_path: Path) -> None:
    found = {runs.digests(reference)[2]}
    for precision in ("bf16", "fp16"):
        options = ("--train.precision", precision)
        runs.train(tmp_path / precision, *options, steps=2)
        runs.train(tmp_path / f"{precision}-two", *options, "--distributed.strategy", "fsdp", steps=2, ranks=2)
        assert runs.digests(tmp_path / precision) == runs.digests(tmp_path / f"{precision}-two")
        found.add(runs.digests(tmp_path / precision)[2])
    assert len(found) == 3  # and each precision others


def test_shard_groups_that_do_not_divide_the_ranks_are_refused(tmp_path: Path) -> None:
    outcome = runs.execute_ranks(2, runs.training(tmp_path / "run", *SHARDED, "--distributed.shard-ranks", "3"))
    assert outcome.code != 0
    assert "distributed.shard_ranks 3 should divide the number of ranks, 2" in outcome.stderr


@pytest.mark.parametrize(
    ("cells", "size", "strategy", "idle"),
    [(8, 32, "fsdp", 1 - 8 / 10), (48, 4, "ddp", 1 - 48 / 50)],
)
def test_five_ranks_share_a_number_of_cells_that_five_does_not_divide(
    tmp_path: Path, cells: int, size: int, strategy: str, idle: float
) -> None:
    kimg = str(cells * size / 1000)
    batch = ("--train.batch-size", str(cells * size), "--train.cell-size", str(size), "--train.total-kimg", kimg)
    options = (*runs.SMALL, *batch, "--checkpoint.every-kimg", kimg, "--distributed.strategy", strategy)
    runs.train(tmp_path / "alone", *options)
    runs.train(tmp_path / "five", *options, ranks=5)
    assert runs.digests(tmp_path / "five") == runs.digests(tmp_path / "alone")
    assert runs.losses(tmp_path / "five") == runs.losses(tmp_path / "alone")
    assert runs.records(tmp_path / "five")[0]["run/idle_share"] == pytest.approx(idle)
    assert runs.records(tmp_path / "alone")[0]["run/idle_share"] == 0


def test_several_buckets_train_the_weights_that_one_process_trains(tmp_path: Path) -> None:
    # More than a megabyte of gradients, which is what DDP puts into its first bucket.
    options = (*RESAMPLES, "--generator.model-channels", "40", "--data.flip", "false")
    runs.train(tmp_path / "alone", *options, steps=2)
    runs.train(tmp_path / "three", *options, steps=2, ranks=3)
    assert runs.digests(tmp_path / "three") == runs.digests(tmp_path / "alone")


def test_another_seed_trains_other_weights(reference: Path, tmp_path: Path) -> None:
    runs.train(tmp_path / "run", "--seed", "1", steps=2)
    assert runs.digests(tmp_path / "run")[2] != runs.digests(reference)[2]


@pytest.mark.parametrize("options", [(), SHARDED], ids=["ddp", "fsdp"])
def test_fast_reduction_trains_on_two_ranks(reference: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    options = ("--distributed.reduction", "fast", *options)
    runs.train(tmp_path / "run", *options, steps=2, ranks=2)
    assert list(runs.digests(tmp_path / "run")) == [2]
    fast, exact = runs.losses(tmp_path / "run"), runs.losses(reference)
    for step in (1, 2):  # the same sums, in another order
        assert math.isclose(fast[step]["loss/total"], exact[step]["loss/total"], rel_tol=1e-4)
        assert math.isclose(fast[step]["optimizer/gradient_norm"], exact[step]["optimizer/gradient_norm"], rel_tol=1e-2)
