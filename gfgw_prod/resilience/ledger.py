"""The history of a run over all its starts: causes of restarts, images lost, and time spent."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from gfgw_prod.process.durable import write_whole
from gfgw_prod.process.restart_causes import CAUSES, Cause

FILE = "ledger.json"
WRITE_SECONDS = 5.0  # between writes of the position
PRODUCTIVE = "productive_seconds"  # a fact of a checkpoint's manifest
NUMBERS = ("began", "paused_seconds", "lost_images", "noted", "images")
End = Literal["open", "told to stop", "finished", "error"]  # how a start ended, as the file has it


class Ledger:
    """Kept by rank 0 in a file of the run directory. A run without it trains the same weights."""

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.time):
        self._file, self._clock = run_dir / FILE, clock
        self._entries = dict.fromkeys(NUMBERS, 0.0)
        self._restarts: dict[Cause, int] = dict.fromkeys(CAUSES, 0)
        self._end: str = "finished"
        self._exists = self._read()
        self._productive_before = 0.0  # seconds, of the checkpoint that this start resumes from

    def begin(
        self, images: int, *, seen: int, starting_seconds: float, cause: Cause | None, productive_seconds: float
    ) -> Cause | None:
        """Record a start that resumes after ``images`` images. Returns the cause of the restart, if it is one.

        Args:
            seen: images of the last metric record before this start.
            starting_seconds: time that this start has taken so far.
            cause: of the restart, if known.
            productive_seconds: time in steps that the resumed state has behind it.
        """
        entries, started, counted = self._entries, self._clock() - starting_seconds, None
        if not self._exists:
            entries["began"] = started
        elif self._end == "finished":  # the run was extended: not a restart
            self._exclude_pause(started)
        else:
            stopped = self._end == "told to stop"
            if stopped:
                self._exclude_pause(started)
            default: Cause = "preempted" if stopped else "error" if self._end == "error" else "unknown"
            counted = cause or default
            self._restarts[counted] += 1
            entries["lost_images"] += max(entries["images"], seen, images) - images
        self._productive_before = productive_seconds
        entries["images"] = images
        self._write("open")
        return counted

    def exclude(self, seconds: float) -> None:
        """Exclude evaluation time from the running time."""
        self._entries["paused_seconds"] += seconds
        self._write("open")

    def record_images(self, images: int) -> None:
        """Record the position of the run. It is written every few seconds."""
        if self._clock() - self._entries["noted"] >= WRITE_SECONDS:
            self._entries["images"] = images
            self._write("open")

    def end(self, images: int, how: End) -> None:
        """Record the end of this start."""
        self._entries["images"] = images
        self._write(how)

    def productive_seconds(self, spent: float) -> float:
        """Time in steps of the whole run, if this start has ``spent`` so many seconds in steps."""
        return self._productive_before + spent

    def values(self, spent: float) -> dict[str, float]:
        """Metrics by tag of the catalogue."""
        running = max(self._clock() - self._entries["began"] - self._entries["paused_seconds"], 1e-9)
        productive = self.productive_seconds(spent)
        return {
            "run/lost_images": self._entries["lost_images"],
            "run/productive_seconds": productive,
            "run/running_seconds": running,
            "run/goodput": min(productive / running, 1.0),
            **{f"run/restarts/{cause}": float(count) for cause, count in self._restarts.items()},
        }

    def _exclude_pause(self, started: float) -> None:
        """Exclude the time between the end of the last start and the beginning of this one."""
        self._entries["paused_seconds"] += max(started - self._entries["noted"], 0.0)

    def _write(self, end: End) -> None:
        self._entries["noted"], self._end = self._clock(), end
        content = {**self._entries, "restarts": self._restarts, "end": end}
        with suppress(OSError):  # a full disk must not end the run
            write_whole(self._file, f"{json.dumps(content)}\n".encode(), sync=False)

    def _read(self) -> bool:
        """Read the file; return whether it is there and valid."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            numbers = {name: float(found[name]) for name in NUMBERS}
            restarts = {cause: int(found["restarts"].get(cause, 0)) for cause in CAUSES}
            end = str(found["end"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            return False
        if not all(math.isfinite(number) and number >= 0 for number in numbers.values()):
            return False
        self._entries, self._restarts, self._end = numbers, restarts, end
        return True
