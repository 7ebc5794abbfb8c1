"""A rank without progress is detected and leaves its stacks; the run ends with the weights of an undisturbed one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from . import copies, runs

HANG_SECONDS = 12.0
LIMIT = ("--resilience.hang-seconds", str(HANG_SECONDS))
FOREVER = "10**6"


Scenario = Callable[[Path], str]  # returns what was logged


def rank_that_sleeps_while_it_starts(directory: Path) -> str:
    """Under plain torchrun, in the first block of the bank."""
    sleeps = f"__import__('os').environ['RANK'] == '1' and __import__('time').sleep({FOREVER})"
    copy = copies.while_encoding(directory, sleeps)
    hung = runs.execute(runs.training(directory / "run", *LIMIT, ranks=2), copy)
    assert hung.code == 1, hung.stderr
    assert "gfgw: rank 1 made no progress for 12 s" in hung.stderr
    return runs.train(directory / "run").stderr


def process_that_holds_the_gil(directory: Path) -> str:
    """A single process in which no Python code runs any more. The next start reports it."""
    holds = "import ctypes; self.step == 3 and ctypes.PyDLL(None).sleep"
    copy = copies.in_step(directory, f"{holds}({FOREVER})")
    hung = runs.execute(runs.training(directory / "run", *LIMIT), copy)
    assert hung.code == 1, hung.stderr
    return runs.train(directory / "run").stderr


# Ranks that certainly leave stacks, and what they were doing.
SCENARIOS: dict[Scenario, dict[int, str]] = {
    rank_that_sleeps_while_it_starts: {1: "starting"},
    process_that_holds_the_gil: {0: "in step"},
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Scenario, tuple[Path, Future[str]]]]:
    """All stories at once: most of their time is spent waiting."""
    places = {scenario: tmp_path_factory.mktemp(scenario.__name__) for scenario in SCENARIOS}
    with ThreadPoolExecutor() as pool:
        yield {scenario: (place / "run", pool.submit(scenario, place)) for scenario, place in places.items()}


@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="finding a rank's process needs /proc")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_hang_leaves_stacks_and_changes_no_weight(
    said: dict[Scenario, tuple[Path, Future[str]]], reference: Path, scenario: Scenario
) -> None:
    run_dir, logged = said[scenario]
    lines = [line for line in logged.result().splitlines() if "made no progress in the last start" in line]
    assert len(lines) == 1, logged.result()
    for rank, doing in SCENARIOS[scenario].items():
        (file,) = (run_dir / "stacks").glob(f"*-rank-{rank}.txt")
        first, _, stacks = file.read_text().partition("\n")
        assert first.startswith(f"rank {rank}, process"), first
        assert doing in first
        assert "trainer.py" in stacks
    assert not [*(run_dir / "stacks").glob("rank-*")]
    assert runs.digests(run_dir)[runs.STEPS] == runs.digests(reference)[runs.STEPS]
    assert runs.losses(run_dir) == runs.losses(reference)
