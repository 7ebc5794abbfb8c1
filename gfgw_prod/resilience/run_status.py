"""State and position of a run, read from the files of its directory: while it trains, and afterwards."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from gfgw_prod.checkpoint.run_directory import HISTORY, holder_of
from gfgw_prod.resilience import ledger
from gfgw_prod.telemetry.sinks import last_values

MARKS = ("checkpoints", ledger.FILE, "stats.jsonl")  # a directory with any of these is a run's
# By the end of the last start in the ledger; a start without an end runs, or was killed.
STATES = {"finished": "finished", "told to stop": "stopped", "error": "failed"}
RECENT_SECONDS = 600.0  # a run on another host, where its lock may not be seen, is not killed if it wrote since


@dataclass(frozen=True)
class RunStatus:
    """State and position of a run; numbers are ``None`` before its first record.

    Attributes:
        state: running, finished, stopped, failed, killed, or new: no start of it has begun to train.
        eta_seconds: estimated time to its end, while it runs.
        fd: Fréchet distance of the last evaluation.
        fd_in: its feature space and number of samples; empty if the last start does not evaluate.
        record_age_seconds: time since the last record.
    """

    name: str
    state: str
    step: int | None
    images: int | None
    planned_images: int | None
    eta_seconds: float | None
    fd: float | None
    fd_in: str
    record_age_seconds: float | None


def status_of(run_dir: Path) -> RunStatus:
    """Read how a run stands."""
    state, values = _state_of(run_dir), last_values(run_dir / "stats.jsonl")
    age = max(time.time() - values["time"], 0.0) if "time" in values else None
    eta = values.get("run/eta_seconds")
    return RunStatus(
        run_dir.name,
        state,
        _whole(values.get("step")),
        _whole(values.get("images")),
        _whole(values.get("run/planned_images")),
        max(eta - age, 0.0) if state == "running" and eta is not None and age is not None else None,
        values.get("evaluation/fd"),
        _fd_in(run_dir),
        age,
    )


def runs_in(directory: Path) -> list[Path]:
    """The runs directly in a directory, by name; none if it is a run's own."""
    if is_run(directory) or not os.path.isdir(directory):
        return []
    return sorted(path for path in directory.iterdir() if is_run(path))


def is_run(directory: Path) -> bool:
    """Whether a directory is a run's."""
    return any(os.path.exists(directory / mark) for mark in MARKS)


def _fd_in(run_dir: Path) -> str:
    try:
        *_, last = (run_dir / HISTORY).read_text(encoding="utf-8").splitlines()
        return str(json.loads(last).get("fd_in", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _state_of(run_dir: Path) -> str:
    locked, host = holder_of(run_dir)
    try:
        found = json.loads((run_dir / ledger.FILE).read_text(encoding="utf-8"))
        end, noted = str(found["end"]), float(found["noted"])
    except (OSError, ValueError, KeyError, TypeError):
        return "running" if locked else "new"
    elsewhere = host not in ("", os.uname().nodename) and time.time() - noted < RECENT_SECONDS
    if locked or (end == "open" and elsewhere):
        return "running"
    return STATES.get(end, "killed")


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
