"""Malformed variables of the elastic launcher, and ranks that cannot meet: a code and a line each, and no hang."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gfgw_prod.process.exit_codes import CRASHED

from . import copies, runs

NO_COUNTS = ("x", "-1", "1.5", "1e3", "0x10", "٣", "1 2", "9" * 30, "$(exit)", "a[$(exit 3)]", "\n", "+1", "08x")
VARIABLES: dict[str, tuple[str, ...]] = {
    "NNODES": (*NO_COUNTS, "0", "two", "4:2", "2", "1:", ":2", "1:2:3", "0:1", "1,2"),
    "NPROC": (*NO_COUNTS, "0", "1025", "999999999", "gpu"),
    "MAX_RESTARTS": NO_COUNTS,
    "RDZV_TIMEOUT": (*NO_COUNTS, "0", "soon"),
    "RDZV_LAST_CALL": (*NO_COUNTS, "0"),
    "GRACE_SECONDS": (*NO_COUNTS, "0"),
    "RDZV_ENDPOINT": (
        "host",
        ":29400",
        "host:",
        "host:port",
        "host:0",
        "host:65536",
        "host:999999",
        "a b:29400",
        "host:-1",
        "\n:1",
    ),
    "PYTHON": ("/no/such/python", "/dev/null", "/", "no-such-python"),
    "OMP_NUM_THREADS": (*NO_COUNTS, "0", "1,", ",1"),
}


@pytest.mark.parametrize("name", VARIABLES)
def test_wrong_variable_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    for value in VARIABLES[name]:
        surroundings = {name: value, **({"NNODES": "2"} if name == "RDZV_ENDPOINT" else {})}
        refused = runs.execute(runs.elastic(tmp_path / "run"), surroundings)
        assert (refused.code, refused.stdout) == (2, ""), (value, refused)
        assert refused.stderr.startswith("elastic.sh: "), (value, refused)
        assert name in refused.stderr
        assert len(refused.stderr.replace(value, "").splitlines()) == 1, (value, refused)
        assert not any(tmp_path.iterdir())


def when_begun(directory: Path, rank: int, statement: str) -> dict[str, str]:
    """The environment of ranks of which one does something before anything else."""
    differs = f"    import sys, time\n    if os.environ['LOCAL_RANK'] == '{rank}':\n        {statement}\n"
    return copies.changed(directory, copies.PROCESS_BEGINS, after=differs)


@pytest.mark.parametrize("late", [0, 1])
def test_wrong_setting_is_told_once_whichever_rank_finds_it_first(tmp_path: Path, late: int) -> None:
    copy = when_begun(tmp_path, late, "time.sleep(8)")
    refused = runs.execute(runs.elastic(tmp_path / "run", "--train.batch-size", "0"), copy | {"NPROC": "2"})
    assert "train.batch_size" in refused.complaint


def test_torchrun_itself_tells_what_the_rank_found_that_was_first(tmp_path: Path) -> None:
    copy = when_begun(tmp_path, 0, "time.sleep(8)")
    refused = runs.execute(runs.training(tmp_path / "run", "--train.batch-size", "0", ranks=2), copy)
    assert refused.code == CRASHED  # torchrun's own, whatever a rank's is
    assert "exitcode  : 2 " in refused.stderr
    assert re.search(r"traceback : train\.batch_size should be", refused.stderr), refused.stderr


def test_what_one_rank_alone_finds_wrong_is_told(tmp_path: Path) -> None:
    copy = when_begun(tmp_path, 1, "sys.argv.extend(('--train.batch-size', '0'))")
    refused = runs.execute(runs.elastic(tmp_path / "run"), copy | {"NPROC": "2"})
    assert "train.batch_size" in refused.complaint


def test_rank_that_meets_nobody_gives_up_after_the_limit_of_its_settings(tmp_path: Path) -> None:
    lost = {
        "nobody listens": {"RANK": "1", "MASTER_ADDR": "127.0.0.1"},
        "no such host": {"RANK": "1", "MASTER_ADDR": "no.such.host.invalid"},
        "nobody comes": {"RANK": "0", "MASTER_ADDR": "127.0.0.1"},
    }
    command = runs.training(tmp_path / "run", "--distributed.timeout-seconds", "2")

    def started(place: dict[str, str]) -> runs.Outcome:
        return runs.execute(command, {**place, "WORLD_SIZE": "2", "MASTER_PORT": str(runs.free_port())})

    outcomes = runs.execute_all({name: lambda p=place: started(p) for name, place in lost.items()}, at_once=3)
    for name, alone in outcomes.items():
        assert alone.code == CRASHED, (name, alone)  # its peers may come to the next attempt
        assert len(alone.stderr.splitlines()) == 1, (name, alone)
        assert f"gfgw: rank {lost[name]['RANK']} " in alone.stderr
    assert not any(tmp_path.iterdir())
