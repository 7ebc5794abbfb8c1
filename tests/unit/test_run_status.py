"""How runs stand: running, finished, stopped, failed or killed, and how long they still take."""

from __future__ import annotations

import fcntl
import json
import time
from pathlib import Path
from typing import Any

import pytest

from gfgw_prod.commands import cli
from gfgw_prod.process.watchdog import Watch
from gfgw_prod.resilience.run_status import status_of
from gfgw_prod.telemetry.health import Health
from gfgw_prod.telemetry.pace import Pace


def make_run(run_dir: Path, *, end: str = "open", age: float = 0.0, host: str = "") -> Path:
    """The files of a run of 4,000 images that has seen 1,000 and been evaluated before."""
    run_dir.mkdir(parents=True)
    noted = time.time() - age
    records: list[dict[str, Any]] = [
        {"step": 50, "images": 500, "time": noted - 60, "evaluation/fd": 1.5},
        {"step": 100, "images": 1000, "time": noted, "run/planned_images": 4000, "run/eta_seconds": 300.0},
    ]
    lines = "".join(f"{json.dumps(record)}\n" for record in records)
    (run_dir / "stats.jsonl").write_text(lines + '{"step": 101, "ima')  # cut short by a crash
    (run_dir / "ledger.json").write_text(json.dumps({"end": end, "noted": noted}))
    (run_dir / ".lock").write_text(json.dumps({"host": host}) if host else "")
    return run_dir


@pytest.mark.parametrize(
    ("end", "state"),
    [("open", "killed"), ("finished", "finished"), ("told to stop", "stopped"), ("error", "failed")],
)
def test_state_of_a_run_without_a_process(end: str, state: str, tmp_path: Path) -> None:
    status = status_of(make_run(tmp_path / "a", end=end, age=100))
    assert (status.name, status.state) == ("a", state)
    assert (status.step, status.images, status.planned_images, status.fd) == (100, 1000, 4000, 1.5)
    assert status.eta_seconds is None
    assert status.record_age_seconds == pytest.approx(100, abs=20)


def test_run_with_a_process_is_running(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "a", end="finished", age=100)
    with (run_dir / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status = status_of(run_dir)
    assert status.state == "running"
    assert status.eta_seconds == pytest.approx(200, abs=20)  # 300 s at the last record


def test_run_on_another_host_counts_as_running_while_it_writes(tmp_path: Path) -> None:
    assert status_of(make_run(tmp_path / "a", host="elsewhere", age=10)).state == "running"
    assert status_of(make_run(tmp_path / "b", host="elsewhere", age=10_000)).state == "killed"


def test_inspect_lists_the_runs_of_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "second", end="finished")
    make_run(tmp_path / "first", end="told to stop", age=7200)
    starts = [{"fd_in": "timm:a@224, 50"}, {"fd_in": "pixels, 2,000"}]
    (tmp_path / "first" / "history.jsonl").write_text("".join(f"{json.dumps(start)}\n" for start in starts))
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    assert cli.main(["inspect", str(tmp_path)]) == 0
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["run", "state", "step", "kimg", "of", "left", "record", "fd", "in"]
    assert rows[0] == ["first", "stopped", "100", "1.0", "4", "-", "2", "h", "1.5", "pixels,", "2,000"]
    assert [row[:3] for row in rows[1:]] == [["new", "new", "-"], ["second", "finished", "100"]]
    assert rows[2][-1] == "1.5"  # started by a version that did not say
    assert cli.main(["inspect", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert next((run["name"], run["state"], run["images"]) for run in found) == ("first", "stopped", 1000)
    assert cli.main(["inspect", str(tmp_path), "--verify"]) == 2
    assert cli.main(["inspect", str(tmp_path / "notes")]) == 2


def test_time_to_the_end_counts_from_the_first_record(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace(step=10, last_step=111, batch_size=32)
    now[0] = 60.0  # the first step compiles
    assert pace.values(11)["run/eta_seconds"] == 60 * 100
    now[0] = 80.0
    assert pace.values(21)["run/eta_seconds"] == 2 * 90
    with pace.paused():  # an evaluation: part of the rest, but not of the speed
        now[0] = 180.0
    now[0] = 200.0
    values = pace.values(31)
    assert (values["speed/step_seconds"], values["run/eta_seconds"]) == (2, 7 * 80)
    goes_on = Pace(step=31, last_step=111, batch_size=32, mean=pace.mean)  # with another rank
    now[0] = 300.0
    assert goes_on.values(32)["run/eta_seconds"] == 7 * 79


def test_probes_say_how_long_a_run_still_takes() -> None:
    health = Health(600, Watch().silence)
    health.step_done(7, 70)
    assert "eta_seconds" not in health.ready()
    health.expect_end(120.2)
    assert health.ready()["eta_seconds"] == 120
    health.enter_phase("finished")
    assert "eta_seconds" not in health.ready()
