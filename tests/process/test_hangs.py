"""A rank that makes no progress is found and leaves its stacks; the run ends with an undisturbed one's weights."""

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
FOUND_SECONDS = HANG_SECONDS + 5
LIMIT = ("--resilience.hang-seconds", str(HANG_SECONDS))
FOR_EVER = "10**6"


class Stalls(threading.Thread):
    """Seconds for which this machine stood still, by context: by how much a thread slept too long."""

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


Story = Callable[[Path], str]  # returns what was said


def stopped_rank(directory: Path) -> str:
    """Rank 1 of 2 is stopped; the agent wakes it when its peer has missed it."""
    run_dir, struck = directory / "run", directory / "struck"
    copy = copies.held_in_step(directory, 3, until=struck)
    agent = runs.start(runs.elastic(run_dir, *LIMIT), copy | {"NPROC": "2"})
    runs.wait_until((run_dir / "checkpoints" / "step-00000002").exists, agent)
    seen_at_work = run_dir / "stacks" / "rank-1.txt"  # written once a second
    runs.wait_until(lambda: "in step" in seen_at_work.read_text(), agent)
    os.kill(runs.workers_of(agent.pid)[1], signal.SIGSTOP)
    struck.touch()
    stopped = time.monotonic()
    with Stalls() as stalls:
        said = runs.hear(agent, "restart 1 of 3")
    assert time.monotonic() - stopped < FOUND_SECONDS + stalls.seconds, said
    outcome = runs.outcome_of(agent)
    assert outcome.code == 0, said + outcome.stderr
    return said + outcome.stderr


def rank_that_sleeps_while_it_starts(directory: Path) -> str:
    """Under plain torchrun, in the first block of the bank."""
    sleeps = f"__import__('os').environ['RANK'] == '1' and __import__('time').sleep({FOR_EVER})"
    copy = copies.while_encoding(directory, sleeps)
    hung = runs.execute(runs.training(directory / "run", *LIMIT, ranks=2), copy)
    assert hung.code == 1, hung.stderr
    assert "gfgw: rank 1 made no progress for 12 s" in hung.stderr
    return runs.train(directory / "run").stderr


def process_that_holds_its_lock(directory: Path) -> str:
    """Alone: no Python code runs any more, and nobody else could notice. The next start tells."""
    holds = "import ctypes; self.step == 3 and ctypes.PyDLL(None).sleep"
    copy = copies.in_step(directory, f"{holds}({FOR_EVER})")
    hung = runs.execute(runs.training(directory / "run", *LIMIT), copy)
    assert hung.code == 1, hung.stderr
    return runs.train(directory / "run").stderr


# What ranks were doing that certainly leave their stacks: a peer may notice first that a rank has ended.
STORIES: dict[Story, dict[int, str]] = {
    stopped_rank: {0: "in step", 1: "in step"},
    rank_that_sleeps_while_it_starts: {1: "starting"},
    process_that_holds_its_lock: {0: "in step"},
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Story, tuple[Path, Future[str]]]]:
    """All stories at once: most of their time is spent waiting."""
    places = {story: tmp_path_factory.mktemp(story.__name__) for story in STORIES}
    with ThreadPoolExecutor() as pool:
        yield {story: (place / "run", pool.submit(story, place)) for story, place in places.items()}


@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="finding a rank's process needs /proc")
@pytest.mark.parametrize("story", STORIES)
def test_hang_leaves_stacks_and_costs_no_weight(
    said: dict[Story, tuple[Path, Future[str]]], reference: Path, story: Story
) -> None:
    run_dir, told = said[story]
    lines = [line for line in told.result().splitlines() if "made no progress in the last start" in line]
    assert len(lines) == 1, told.result()
    for rank, doing in STORIES[story].items():
        (file,) = (run_dir / "stacks").glob(f"*-rank-{rank}.txt")
        first, _, stacks = file.read_text().partition("\n")
        assert first.startswith(f"rank {rank}, process"), first
        assert doing in first
        assert "trainer.py" in stacks
    assert not [*(run_dir / "stacks").glob("rank-*")]
    assert runs.digests(run_dir)[runs.STEPS] == runs.digests(reference)[runs.STEPS]
    assert runs.losses(run_dir) == runs.losses(reference)
