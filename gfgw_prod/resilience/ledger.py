"""How a run has fared over all its starts: what was lost, what it was started again for, how its time was spent."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from gfgw_prod.process.restart_causes import CAUSES, Cause

FILE = "ledger.json"
EVERY_SECONDS = 5.0  # between notes of how far the run is
NUMBERS = ("began", "paused_seconds", "lost_images", "noted", "images")
End = Literal["open", "told to stop", "finished", "error"]


class Ledger:
    """Kept by rank 0 in a file of the run directory. It touches no weight, and a run without it goes on all the same.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.time):
        self._file, self._clock = run_dir / FILE, clock
        self._entries = dict.fromkeys(NUMBERS, 0.0)
        self._restarts: dict[Cause, int] = dict.fromkeys(CAUSES, 0)
        self._end: str = "finished"
        self._known = self._read()
        self._before = 0.0  # productive seconds up to the checkpoint that this start goes on from

    def begin(
        self, images: int, *, seen: int, starting_seconds: float, cause: Cause | None, productive_seconds: float
    ) -> None:
        """A start begins with the state after ``images`` images.

        Args:
            seen: images on record before it.
            starting_seconds: that this start has taken so far.
            cause: of the start, if it is known.
            productive_seconds: behind the state.
        """
        entries, started = self._entries, self._clock() - starting_seconds
        if not self._known:
            entries["began"] = started
        elif self._end == "finished":  # to go on further
            entries["paused_seconds"] += max(started - entries["noted"], 0.0)
        else:
            orderly = self._end == "told to stop"
            if orderly:
                entries["paused_seconds"] += max(started - entries["noted"], 0.0)
            found: Cause = "preempted" if orderly else "error" if self._end == "error" else "unknown"
            self._restarts[cause or found] += 1
            entries["lost_images"] += max(entries["images"], seen, images) - images
        self._before = productive_seconds
        entries["images"] = images
        self._note("open")

    def exclude(self, seconds: float) -> None:
        """So long the run has measured its samples: it neither made steps nor lost time."""
        self._entries["paused_seconds"] += seconds
        self._note("open")

    def note(self, images: int) -> None:
        """How far the run is now; written down now and then."""
        if self._clock() - self._entries["noted"] >= EVERY_SECONDS:
            self._entries["images"] = images
            self._note("open")

    def end(self, images: int, how: End) -> None:
        """This start ends."""
        self._entries["images"] = images
        self._note(how)

    def productive_seconds(self, spent: float) -> float:
        """Of the whole run, with what this start has ``spent`` in steps."""
        return self._before + spent

    def values(self, spent: float) -> dict[str, float]:
        """By tag of the catalogue."""
        running = max(self._clock() - self._entries["began"] - self._entries["paused_seconds"], 1e-9)
        productive = self.productive_seconds(spent)
        return {
            "run/lost_images": self._entries["lost_images"],
            "run/productive_seconds": productive,
            "run/running_seconds": running,
            "run/goodput": min(productive / running, 1.0),
            **{f"run/restarts/{cause}": float(count) for cause, count in self._restarts.items()},
        }

    def _note(self, end: End) -> None:
        self._entries["noted"], self._end = self._clock(), end
        partial = self._file.with_name(f".{FILE}.partial")
        with suppress(OSError):  # a full disk has its own consequences
            whole = {**self._entries, "restarts": self._restarts, "end": end}
            partial.write_text(json.dumps(whole) + "\n", encoding="utf-8")
            partial.replace(self._file)

    def _read(self) -> bool:
        """Whether there was something that we wrote."""
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
