"""The weights do not depend on the number of ranks, nor on how the generator is spread over them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from . import runs

SUBSET = ("--transport.scope", "subset", "--transport.subset-rows", "300")


@pytest.mark.parametrize(("ranks", "strategy"), [(2, "ddp"), (3, "ddp"), (2, "fsdp"), (4, "fsdp")])
def test_ranks_train_the_weights_that_one_process_trains(
    reference: Path, tmp_path: Path, ranks: int, strategy: str
) -> None:
    runs.train(tmp_path / "run", "--distributed.strategy", strategy, ranks=ranks)
    assert runs.digests(tmp_path / "run") == runs.digests(reference)
    assert runs.losses(tmp_path / "run") == runs.losses(reference)


def test_ranks_draw_the_bank_rows_that_one_process_draws(reference: Path, tmp_path: Path) -> None:
    runs.train(tmp_path / "alone", *SUBSET, steps=2)
    runs.train(tmp_path / "ranks", *SUBSET, "--distributed.strategy", "fsdp", steps=2, ranks=3)
    alone = runs.digests(tmp_path / "alone")
    assert alone == runs.digests(tmp_path / "ranks")
    assert alone[2] != runs.digests(reference)[2]


def test_another_seed_trains_other_weights(reference: Path, tmp_path: Path) -> None:
    runs.train(tmp_path / "run", "--seed", "1", steps=2)
    assert runs.digests(tmp_path / "run")[2] != runs.digests(reference)[2]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_fast_reduction_trains_on_two_ranks(reference: Path, tmp_path: Path, strategy: str) -> None:
    options = ("--distributed.reduction", "fast", "--distributed.strategy", strategy)
    runs.train(tmp_path / "run", *options, steps=2, ranks=2)
    assert list(runs.digests(tmp_path / "run")) == [2]
    fast, exact = runs.losses(tmp_path / "run"), runs.losses(reference)
    for step in (1, 2):  # the same sums in another order
        assert math.isclose(fast[step]["loss/total"], exact[step]["loss/total"], rel_tol=1e-4)
        assert math.isclose(fast[step]["optimizer/gradient_norm"], exact[step]["optimizer/gradient_norm"], rel_tol=1e-2)
