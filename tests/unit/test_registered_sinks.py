"""Sinks that other packages register."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from gfgw_prod.commands import cli
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.telemetry.registered_sinks import find_sinks, open_sinks
from gfgw_prod.telemetry.sinks import JsonLines, Telemetry

from .. import sink_packages

CODE = """
class Failing:
    def __init__(self, run_dir, settings, step):
        if settings["seed"] == 13:
            raise RuntimeError("no login")
        if settings["seed"] == 14:
            raise SystemExit("no login")
        self.path, self.records = run_dir / "failing.txt", 0

    def __eq__(self, other):  # makes it unhashable, as a data class is
        return self is other

    def record(self, step, images, values):
        self.records += 1
        if self.records == 1:
            raise RuntimeError("the server is gone")
        self.path.write_text(f"{step} {images} {values}")

    def picture(self, images, tag, grid):
        pass

    def close(self):
        raise KeyError("never opened")
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that registers a sink, on the search path."""
    packages = tmp_path / "packages"
    sink_packages.register(packages, "failing-sink", "[gfgw_prod.sinks]\nfailing = failing_sink:Failing\n")
    (packages / "failing_sink.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.delitem(sys.modules, "failing_sink", raising=False)


def test_registered_sink_gets_records_and_does_not_end_a_run(tmp_path: Path) -> None:
    lines: list[str] = []
    sinks = open_sinks(["failing"], tmp_path, {"seed": 0}, 0)
    telemetry = Telemetry.open(tmp_path, step=0, images=0, log=lines.append, registered=sinks)
    telemetry.record(1, 10, {"loss/total": 1.0})
    telemetry.record(2, 20, {"loss/total": 0.5})
    telemetry.close()
    assert (tmp_path / "failing.txt").read_text() == "2 20 {'loss/total': 0.5}"
    assert len((tmp_path / "stats.jsonl").read_text().splitlines()) == 2
    assert lines[0] == "metrics cannot be written by Failing (the server is gone); the run goes on"


def test_sink_that_is_slow_to_close_is_left_behind(tmp_path: Path) -> None:
    lines: list[str] = []
    released = threading.Event()

    class Slow(JsonLines):
        def close(self) -> None:
            released.wait()
            super().close()

    telemetry = Telemetry(log=lines.append, registered=[Slow(tmp_path / "slow.jsonl", 0)])
    telemetry.record(1, 10, {})
    telemetry.close(limit_seconds=0.1)
    assert lines == ["Slow has not closed within 0.1 s, and is left behind"]
    released.set()


@pytest.mark.parametrize("seed", [13, 14])
def test_sink_that_cannot_be_opened_is_bad_input(tmp_path: Path, seed: int) -> None:
    with pytest.raises(UserError, match=r"telemetry\.sinks: failing cannot be opened: no login"):
        open_sinks(["failing"], tmp_path, {"seed": seed}, 0)


def test_unknown_sink_is_refused_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_sinks([]) == []
    run_dir = tmp_path / "run"
    assert cli.main(["train", "--run.dir", str(run_dir), "--telemetry.sinks", "failing,other"]) == 2
    assert (
        "no installed package registers 'other' in gfgw_prod.sinks (there is failing, mlflow, wandb)"
        in capsys.readouterr().err
    )
    assert not run_dir.exists()
