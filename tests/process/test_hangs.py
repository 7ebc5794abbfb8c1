"""A rank without progress is detected and leaves its stacks; the run ends with the weights of an undisturbed one."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from . import copies, runs

HANG_SECONDS = 12.0
DETECTED_SECONDS = HANG_SECONDS + 5
LIMIT = ("--resilience.hang-seconds", str(HANG_SECONDS))
FOREVER = "10**6"


class Stalls(threading.Thread):
    """Seconds for which this machine stalled within the context: by how much a thread overslept."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seconds, self._over = 0.0, threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            begun = time.monotonic()
            time.sleep(0.1)
            self.seconds += max(time.monotonic() - begun - 0.2, 0.0)

    def __enter__(self) -> Stalls:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


Scenario = Callable[[Path], str]  # returns what was logged


def stopped_rank(directory: Path) -> str:
    """Rank 1 of 2 is stopped; the agent resumes it when its peer has missed it."""
    run_dir, go_on = directory / "run", directory / "stopped"
    copy = copies.held_in_step(directory, 3, until=go_on)
    agent = runs.start(runs.elastic(run_dir, *LIMIT), copy | {"NPROC": "2"})
    runs.wait_until((run_dir / "checkpoints" / "step-00000002").exists, agent)
    stacks = run_dir / "stacks" / "rank-1.txt"  # written once a second
    runs.wait_until(lambda: "in step" in stacks.read_text(), agent)
    os.kill(runs.workers_of(agent.pid)[1], signal.SIGSTOP)
    go_on.touch()
    stopped = time.monotonic()
    with Stalls() as stalls:
        said = runs.hear(agent, "restart 1 of 3")
    assert time.monotonic() - stopped < DETECTED_SECONDS + stalls.seconds, said
    outcome = runs.outcome_of(agent)
    assert outcome.code == 0, said + outcome.stderr
    return said + outcome.stderr


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


# Ranks that certainly leave stacks, and what they were doing. (A peer may notice first that a rank has ended.)
SCENARIOS: dict[Scenario, dict[int, str]] = {
    stopped_rank: {0: "in step", 1: "in step"},
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
