"""Progress of a run under faults, from the records that it writes, and truncates when it resumes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median
from typing import IO


class Progress:
    """Follows ``stats.jsonl``. A resumed run replaces the file by one without the steps that it repeats."""

    def __init__(self, run_dir: Path):
        self.step = 0  # highest so far
        self.position = 0  # last one
        self.repeated = 0  # steps computed again
        self.ranks = 0  # of the last step
        self.useful_seconds = 0.0  # of steps of finished launches, at each launch's usual pace
        self._arrived: dict[int, float] = {}  # first time of each step
        self._path = run_dir / "stats.jsonl"
        self._file: IO[str] | None = None
        self._partial = ""
        self._latest = 0.0  # time of the last record
        self._paces: list[float] = []  # seconds of steps of this launch
        self._new_steps = 0  # of this launch
        self._usual = 0.1

    @property
    def usual_seconds(self) -> float:
        """Median seconds of a step of this launch."""
        return median(self._paces) if len(self._paces) >= 5 else self._usual

    def arrived(self, step: int) -> float:
        """When a step was first recorded, in seconds since the epoch."""
        return self._arrived[step]

    def look(self) -> None:
        """Read new records."""
        if self._file is not None:
            self._take(self._file)  # to its end, even if it has been replaced
            try:
                replaced = os.stat(self._path).st_ino != os.fstat(self._file.fileno()).st_ino
            except FileNotFoundError:
                return
            if not replaced:
                return
            self._file.close()
            self._file = None
        if self._path.exists():
            self._file = self._path.open(encoding="utf-8")
            self._partial = ""
            self._take(self._file)

    def next_launch(self) -> None:
        """Start measuring the pace anew."""
        self.look()
        self._usual = self.usual_seconds
        self.useful_seconds += self._new_steps * self._usual
        self._paces.clear()
        self._new_steps = 0

    def _take(self, file: IO[str]) -> None:
        *lines, self._partial = (self._partial + file.read()).split("\n")
        for line in lines:
            record = json.loads(line)
            # Older records, which a resume kept, have been read before.
            if "loss/total" in record and record["time"] > self._latest:
                self._made(record["step"], record["time"], int(record["run/world_size"]))

    def _made(self, step: int, time: float, ranks: int) -> None:
        if step == self.position + 1:
            self._paces.append(time - self._latest)
        self.position, self._latest, self.ranks = step, time, ranks
        if step > self.step:
            self.step = step
            self._arrived[step] = time
            self._new_steps += 1
        else:
            self.repeated += 1
