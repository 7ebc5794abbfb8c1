"""Wrong computations of one of two ranks are found; the run ends with the weights of an undisturbed run."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from ..chaos.job import INSIDE
from . import runs

AUDIT = ("--resilience.audit-every-steps", "1")
ONCE = "computed the {} wrongly, then correctly; the weights are not affected"
# The kind of fault, the run's settings, what is said of rank 1, and whether the job starts again.
STORIES: dict[str, tuple[str, tuple[str, ...], str, bool]] = {
    "gradient, ddp": ("gradient", AUDIT, ONCE.format("gradient"), False),
    "gradient, fsdp": ("gradient", (*AUDIT, "--distributed.strategy", "fsdp"), ONCE.format("gradient"), False),
    "not a number": ("nan", (), ONCE.format("gradient"), False),
    "weight": ("weight", (), "weights, moments or duals that must be the same on all ranks differ", True),
}


def struck(directory: Path, kind: str, options: tuple[str, ...]) -> runs.Outcome:
    """A run of two ranks, of which rank 1 computes wrongly once."""
    faults, run_dir = directory / "faults", directory / "run"
    faults.mkdir()
    (faults / f"{kind}-1").write_text(f"20\n{run_dir / 'checkpoints' / 'step-00000002'}")
    inside = {"PYTHONPATH": str(INSIDE), "CHAOS_FAULTS": str(faults), "NPROC": "2"}
    outcome = runs.execute(runs.elastic(run_dir, *options), inside)
    assert (faults / f"{kind}-1.taken").exists()
    return outcome


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, Future[runs.Outcome]]]]:
    with ThreadPoolExecutor(2) as pool:
        found = {}
        for story, (kind, options, *_) in STORIES.items():
            directory = tmp_path_factory.mktemp("struck")
            found[story] = directory / "run", pool.submit(struck, directory, kind, options)
        yield found


@pytest.mark.parametrize("story", STORIES)
def test_rank_that_computes_wrongly_once_is_named_and_leaves_no_trace(
    ends: dict[str, tuple[Path, Future[runs.Outcome]]], reference: Path, story: str
) -> None:
    run_dir, end = ends[story]
    _, _, said, again = STORIES[story]
    outcome = end.result()
    assert outcome.code == 0, outcome.stderr
    assert said in outcome.stderr
    assert ("restart 1 of 3" in outcome.stderr) == again
    assert "Traceback" not in outcome.stderr
    if not again:  # if two ranks differ for good, neither can be named
        assert f"rank 1 on {socket.gethostname()} computed" in outcome.stderr
        told = [record["run/hardware_errors"] for record in runs.records(run_dir) if "run/hardware_errors" in record]
        assert told[-1] == [0, 1]
    assert runs.digests(run_dir)[runs.STEPS] == runs.digests(reference)[runs.STEPS]
    assert runs.losses(run_dir) == runs.losses(reference)
