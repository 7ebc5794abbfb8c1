"""What a process is doing, and when it last made progress: the answers to probes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Health:
    """Written by the trainer, read by the threads of the endpoint.

    Args:
        hang_seconds: time without progress after which the process counts as stuck.
        silence: returns the seconds since the last progress.
    """

    def __init__(self, hang_seconds: float, silence: Callable[[], float]):
        self._hang_seconds, self._silence = hang_seconds, silence
        self._doing: str | None = "starting: preparing the run directory"  # None: training
        self._position = 0, 0  # steps, images
        self._ends_at: float | None = None  # estimated

    def enter_phase(self, doing: str) -> None:
        """Set what the process does from now on instead of training, in words."""
        self._doing = doing

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context of an evaluation: no steps are made, and that is no fault."""
        before, self._doing = self._doing, "evaluating"
        try:
            yield
        finally:
            self._doing = before

    @property
    def is_evaluating(self) -> bool:
        """Whether samples are being measured."""
        return self._doing == "evaluating"

    def set_position(self, step: int, images: int) -> None:
        """Set the steps and images behind the run before this process has made a step."""
        self._position = step, images

    def step_done(self, step: int, images: int) -> None:
        """Set the steps and images behind the run after a step of this process: it trains."""
        self._position, self._doing = (step, images), None

    def expect_end(self, eta_seconds: float) -> None:
        """Set the estimated time to the end of the run."""
        self._ends_at = time.monotonic() + eta_seconds

    @property
    def images(self) -> int:
        """Images seen."""
        return self._position[1]

    def live(self) -> dict[str, Any]:
        """Whether there was progress within ``hang_seconds``; if not, ``why`` gives the reason."""
        return self._answer(stuck_only=True)

    def ready(self) -> dict[str, Any]:
        """Whether this process makes steps; if not, ``why`` gives the reason."""
        return self._answer(stuck_only=False)

    def _answer(self, *, stuck_only: bool) -> dict[str, Any]:
        doing, (step, images), ends_at = self._doing, self._position, self._ends_at
        silence = self._silence()
        stuck = silence > self._hang_seconds
        if doing is None:
            why = f"no step for {silence:.0f} s" if stuck else ""
        elif stuck:
            why = f"{doing}; no progress for {silence:.0f} s"
        else:
            why = "" if stuck_only else doing
        answer = {"ok": not why, "doing": doing or "training", "step": step, "images": images}
        if doing is None and ends_at is not None:
            answer["eta_seconds"] = round(max(ends_at - time.monotonic(), 0.0))
        return answer | {"why": why} if why else answer
