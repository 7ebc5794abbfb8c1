"""Speed of training, and how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Steps and images per second since the last record, without the time of evaluations.

    The time to the end of the run is estimated from all steps after the first record of this start, with everything
    between them: evaluations, pictures, saves.

    Args:
        mean: seconds from one step to the next before this start, if known; else 0.

    Attributes:
        mean: the same of this start, once it has two records.
    """

    def __init__(self, step: int, last_step: int, batch_size: int, mean: float = 0.0):
        self.mean = mean
        self._last_step, self._batch_size = last_step, batch_size
        self._then, self._step = time.monotonic(), step
        self._origin: tuple[float, int] | None = None  # time and step of the first record; earlier steps are slower

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context whose time does not count."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._then += time.monotonic() - started

    def values(self, step: int) -> dict[str, float]:
        """Metrics after ``step`` steps, by tag of the catalogue."""
        now = time.monotonic()
        seconds = (now - self._then) / max(step - self._step, 1)
        self._then, self._step = now, step
        self._origin = self._origin or (now, step)
        began, first = self._origin
        if step > first:
            self.mean = (now - began) / (step - first)
        return {
            "speed/step_seconds": seconds,
            "speed/images_per_second": self._batch_size / max(seconds, 1e-9),
            "run/eta_seconds": (self.mean or seconds) * (self._last_step - step),
        }
