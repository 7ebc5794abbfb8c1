"""Gradients have the same bits under every strategy and on any number of ranks, with idle ranks among them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from . import runs


def ranks_found(directory: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run the worker and return what each rank found."""
    outcome = runs.execute([sys.executable, "-m", f"{__package__}.reduction_worker", *arguments], cwd=directory)
    assert outcome.code == 0, outcome.stderr
    return list(json.loads((directory / "found.json").read_text()))


# Cells that ranks do not divide; 9 on 4 and 9 on 8 leave ranks, and copies on two ranks, without a cell.
@pytest.mark.parametrize(("ranks", "cells"), [(2, ("2", "3", "5", "8")), (4, ("4", "5", "9")), (8, ("9",))])
def test_every_strategy_gives_the_gradients_of_one_process(tmp_path: Path, ranks: int, cells: tuple[str, ...]) -> None:
    for found in ranks_found(tmp_path, str(ranks), *cells):
        assert len(found) == len(cells) * (1 + sum(ranks % each == 0 for each in range(1, ranks + 1)))
        assert [way for way, good in found.items() if not good] == []


def test_rank_that_adds_wrongly_is_named_and_not_the_owner_of_the_part(tmp_path: Path) -> None:
    for found in ranks_found(tmp_path, "fault"):
        assert found["named"] == ["gradient", [0]]
