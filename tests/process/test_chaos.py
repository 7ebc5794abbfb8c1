"""A short run under faults ends with the weights of an undisturbed run; `make chaos` runs a long one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from ..chaos.__main__ import chaos
from ..chaos.faults import KINDS
from ..chaos.job import INSIDE
from ..chaos.schedule import schedule
from . import runs

# A stopped rank and a cut link cost the longest waits; test_hangs.py and test_two_hosts.py have them.
QUICK = [kind for kind in KINDS if not kind.cannot() and not any(word in kind.name for word in ("SIGSTOP", "cut"))]
SEED = 1


@pytest.mark.timeout(600)
def test_run_survives_all_faults_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    said: list[str] = []
    result = chaos(tmp_path, SEED, 6, QUICK, said.append)
    assert len(result.struck) == 6
    assert result.good, (result, said, (tmp_path / "job.log").read_text(encoding="utf-8"))


def test_same_seed_gives_the_same_schedule_and_every_kind_occurs() -> None:
    for seed in range(20):
        planned = schedule(seed, 40, KINDS)
        assert planned == schedule(seed, 40, KINDS)
        assert len(planned) == 40
        assert {each.fault for each in planned} == set(KINDS)
        assert all(each.fault.fits(each.launch) for each in planned)
    assert schedule(0, 40, KINDS) != schedule(1, 40, KINDS)


def test_undetected_flipped_bit_trains_other_weights_and_no_flip_trains_the_same(
    reference: Path, tmp_path: Path
) -> None:
    def flipped_on(rank: int) -> runs.Outcome:
        directory = tmp_path / str(rank)
        directory.mkdir()
        (directory / f"flip-{rank}").write_text("20")
        inside = {"PYTHONPATH": str(INSIDE), "CHAOS_FAULTS": str(directory), "NPROC": "1", "MAX_RESTARTS": "0"}
        return runs.execute(runs.elastic(directory / "run", steps=2), inside)

    outcomes = runs.execute_all({str(rank): partial(flipped_on, rank) for rank in (0, 1)})  # there is no rank 1
    assert [outcome.code for outcome in outcomes.values()] == [0, 0], outcomes
    assert (tmp_path / "0" / "flip-0.taken").exists()
    assert runs.digests(tmp_path / "0" / "run")[2] != runs.digests(reference)[2]
    assert runs.digests(tmp_path / "1" / "run")[2] == runs.digests(reference)[2]
