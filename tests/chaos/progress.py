"""What a run under faults has made so far, from the records that it writes and, resumed, takes back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median
from typing import IO


class Progress:
    """Follows ``stats.jsonl``. A resumed run replaces it by a file without the steps that it makes again."""

    def __init__(self, run_dir: Path):
        self.step = 0  # the highest that was ever made
        self.position = 0  # the last that was made
        self.repeated = 0  # steps that were made again
        self.ranks = 0  # that made the last step
        self.useful_seconds = 0.0  # of the steps of launches that have ended, at each one's usual pace
        self._arrived: dict[int, float] = {}  # by step, when it was made for the first time
        self._path = run_dir / "stats.jsonl"
        self._file: IO[str] | None = None
        self._partial = ""
        self._latest = 0.0  # time of the last record
        self._paces: list[float] = []  # seconds of steps of this launch
        self._new_steps = 0  # of this launch
        self._usual = 0.1

    @property
    def usual_seconds(self) -> float:
        """Of a step of the present launch."""
        return median(self._paces) if len(self._paces) >= 5 else self._usual

    def arrived(self, step: int) -> float:
        """When a step was made for the first time, in seconds since the epoch."""
        return self._arrived[step]

    def look(self) -> None:
        """Takes in what was written since."""
        if self._file is not None:
            self._take(self._file)  # to its end, also if it has been replaced meanwhile
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
        """Another topology has another pace."""
        self.look()
        self._usual = self.usual_seconds
        self.useful_seconds += self._new_steps * self._usual
        self._paces.clear()
        self._new_steps = 0

    def _take(self, file: IO[str]) -> None:
        *lines, self._partial = (self._partial + file.read()).split("\n")
        for line in lines:
            record = json.loads(line)
            # What is kept of the time before a resume was seen then.
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
