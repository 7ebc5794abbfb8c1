"""Wrong computations of one of two ranks are found; the run ends with the weights of an undisturbed run."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from ..chaos.job import INSIDE
from . import copies, runs

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


def test_replicas_of_a_shard_that_differ_are_not_saved(reference: Path, tmp_path: Path) -> None:
    run_dir, once = tmp_path / "run", tmp_path / "once"
    copy = copies.in_step(
        tmp_path,
        "import os, torch",
        f"strikes = self.world.rank == 1 and self.step == 3 and not os.path.exists('{once}')",
        "weight = next(iter(self.training.optimizer.parameters.values())).to_local() if strikes else None",
        f"strikes and (open('{once}', 'w'), weight.view(torch.int32).view(-1)[0].bitwise_xor_(1 << 20))",
    )
    replicas = ("--distributed.strategy", "fsdp", "--distributed.shard-ranks", "1")
    outcome = runs.execute(runs.elastic(run_dir, *replicas), copy | {"NPROC": "2"})
    assert outcome.code == 0, outcome.stderr
    assert "weights or moments that must be the same on all ranks differ" in outcome.stderr
    assert "restart 1 of 3" in outcome.stderr
    assert runs.digests(run_dir)[runs.STEPS] == runs.digests(reference)[runs.STEPS]
