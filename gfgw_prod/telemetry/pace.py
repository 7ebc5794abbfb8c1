"""Speed of training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Steps and images per second since the last record, without the time of evaluations."""

    def __init__(self, step: int, batch_size: int):
        self._batch_size = batch_size
        self._then, self._step = time.monotonic(), step

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, time does not count."""
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
        return {"speed/step_seconds": seconds, "speed/images_per_second": self._batch_size / max(seconds, 1e-9)}
