"""Runs that are killed twice at random and resumed on other numbers of ranks end with the same weights."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from . import runs

STEPS = 16
EVERY = 3  # steps between checkpoints
ORDER = (1, 2, 4, 3)  # ranks of consecutive launches, cyclic
STEP_KIMG = runs.SMALL_BATCH / 1000
OPTIONS = (
    *(*runs.SMALL, "--train.total-kimg", str(STEPS * STEP_KIMG)),
    *("--checkpoint.every-kimg", str(EVERY * STEP_KIMG)),
    *("--telemetry.samples-every-kimg", str(STEP_KIMG)),  # time for a kill between two steps
)


def killed_twice(run_dir: Path, number: int, expected: dict[int, dict[str, float]]) -> str:
    """Train to the end in three launches, two of which are killed. Returns the digest of the weights."""
    chance = random.Random(number)
    for launch in range(3):
        ranks = ORDER[(number + launch) % len(ORDER)]
        strategy = chance.choice(["ddp", "fsdp"])
        options = (*OPTIONS, "--distributed.strategy", strategy)
        if launch == 2:
            runs.train(run_dir, *options, ranks=ranks)
            break
        begun = runs.last_step(run_dir)
        step = begun + chance.randint(1, (STEPS - 1 - begun) // (2 - launch))
        processes = runs.start_ranks(ranks, runs.training(run_dir, *options))
        runs.wait_until(lambda step=step: runs.last_step(run_dir) >= step, processes[0])
        processes[chance.randrange(ranks)].kill()
        assert all(outcome.code != 0 for outcome in map(runs.outcome_of, processes))
        so_far = runs.losses(run_dir)
        assert so_far == {step: expected[step] for step in so_far}, "a repeated step differs"
    assert runs.losses(run_dir) == expected
    runs.assert_each_metric_has_each_step_once(run_dir, STEPS)
    return runs.digests(run_dir)[STEPS]


@pytest.mark.timeout(3600)
def test_runs_killed_twice_on_changing_worlds_end_with_the_same_weights(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    runs.train(tmp_path / "undisturbed", *OPTIONS)
    expected = runs.losses(tmp_path / "undisturbed")
    count = 20 if request.config.getoption("--thorough") else 2
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(killed_twice, tmp_path / str(number), number, expected) for number in range(count)]
        digests = [future.result() for future in futures]
    assert digests == count * [runs.digests(tmp_path / "undisturbed")[STEPS]]
