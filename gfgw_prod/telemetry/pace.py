"""How far a run is and how fast it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Figures since the last time they were asked for, without the time of evaluations.

    Args:
        idle_share: share of cell slots that run without weight.
    """

    def __init__(self, step: int, batch_size: int, world_size: int, idle_share: float):
        self._batch_size = batch_size
        self._fixed = {"run/world_size": float(world_size), "run/idle_share": idle_share}
        self._then, self._step = time.monotonic(), step

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Within, no steps are made, as is intended."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._then += time.monotonic() - started

    def values(self, step: int) -> dict[str, float]:
        """After ``step`` steps, by tag of the catalogue."""
        now = time.monotonic()
        seconds = (now - self._then) / max(step - self._step, 1)
        self._then, self._step = now, step
        return self._fixed | {
            "run/images": step * self._batch_size,
            "run/steps": step,
            "speed/step_seconds": seconds,
            "speed/images_per_second": self._batch_size / max(seconds, 1e-9),
        }
