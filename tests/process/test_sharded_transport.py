"""Full scope with a sharded bank: results do not depend on the number of ranks, bytes sent not on the bank's size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from . import runs

SLOTS, DIM = 48, 64
HALVINGS = 5  # from 32 times the ε of the worker


def couple(path: Path, *, ranks: int, rows: int) -> dict[str, Any]:
    """The worker's couplings by dual, target and step; and what it fitted."""
    done = runs.execute_ranks(ranks, [sys.executable, "-m", f"{__package__}.transport_worker", str(path), str(rows)])
    assert done.code == 0, done.stderr
    return torch.load(path, weights_only=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("sharded")
    return {ranks: couple(directory / f"{ranks}.pt", ranks=ranks, rows=1900) for ranks in (1, 2, 4)}


@pytest.fixture(scope="module")
def found(results: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {ranks: each["couplings"] for ranks, each in results.items()}


@pytest.mark.parametrize("ranks", [2, 4])
def test_fitted_potential_and_its_targets_are_the_same_bits_on_any_number_of_ranks(
    results: dict[int, dict[str, Any]], ranks: int
) -> None:
    alone, shared = results[1]["fitted"], results[ranks]["fitted"]
    assert alone["potential"].count_nonzero() == len(alone["potential"])
    assert all(torch.equal(alone[name], shared[name]) for name in alone)


@pytest.mark.parametrize("ranks", [2, 4])
def test_potentials_and_targets_are_the_same_bits_on_any_number_of_ranks(
    found: dict[int, dict[str, Any]], ranks: int
) -> None:
    for name, alone in found[1].items():
        shared = found[ranks][name]
        for what in ("rows", "features", "images", "f", "g", "state"):
            assert torch.equal(alone[what], shared[what]), (name, what)
        assert alone["values"] == shared["values"], name


def test_couplings_converge_and_duals_take_fewer_iterations(found: dict[int, dict[str, Any]]) -> None:
    fresh, persistent = (found[1][f"{dual} argmax 2"]["status"] for dual in ("fresh", "persistent"))
    assert fresh.converged
    assert 3 * persistent.inner_iterations <= fresh.inner_iterations


def bytes_of(name: str, status: Any) -> int:
    """The formula of docs/transport.md."""
    dual, target, step = name.split()
    n, d = SLOTS, DIM
    solver = 12 * n * status.kernel_builds + 8 * n * d * status.outer_iterations
    if dual == "fresh":
        solver += 8 * n * status.inner_iterations + 8 * n * n * status.hessians
        solver += 8 * n * HALVINGS + 8 * status.outer_iterations
        solver += 8 * d
    else:
        solver += 8 * n * status.inner_iterations + (8 * d if step == "0" else 0)
    choice = 16 * n if target == "sample" else 12 * n
    return solver + choice + 4 * n * d


def test_bytes_sent_are_those_of_the_formula(found: dict[int, dict[str, Any]]) -> None:
    assert all(what["sent"] == 0 for what in found[1].values())
    for ranks in (2, 4):
        for name, what in found[ranks].items():
            assert what["sent"] == bytes_of(name, what["status"]), name


def test_a_larger_bank_sends_no_more_an_iteration(found: dict[int, dict[str, Any]], tmp_path: Path) -> None:
    for name, what in couple(tmp_path / "large.pt", ranks=2, rows=5000)["couplings"].items():
        assert what["sent"] == bytes_of(name, what["status"]), name
