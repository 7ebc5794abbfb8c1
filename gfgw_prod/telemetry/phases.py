"""Time of a step by phase."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar, get_args

import torch

StepPhase = Literal["inputs", "generate", "match", "regress", "reduce", "check", "update"]
STEP_PHASES: tuple[StepPhase, ...] = get_args(StepPhase)

P = ParamSpec("P")
R = TypeVar("R")


class StepClock:
    """Time per phase of a step, and what its matching sent.

    On a CPU this is the host's time. On a GPU each phase ends with an event in the stream; events are read once per
    record, so no step waits for the GPU. ``bytes_sent`` returns what this rank has given to collectives so far.
    """

    def __init__(self, device: torch.device, bytes_sent: Callable[[], int] = lambda: 0):
        self._on_gpu, self._bytes_sent = device.type == "cuda", bytes_sent
        self._sums = dict.fromkeys(STEP_PHASES, 0.0)
        self._steps = 0
        self._then, self._bytes_then = 0.0, 0
        self._match_seconds, self._match_bytes = 0.0, 0  # of the last step, on the host
        self._marks: list[tuple[StepPhase | None, torch.cuda.Event]] = []  # of the last step

    def begin(self) -> None:
        """A computation of a step begins."""
        self._steps += 1
        self._then, self._bytes_then = time.perf_counter(), self._bytes_sent()
        if self._on_gpu:
            self._marks = []
            self._mark(None)

    def lap(self, phase: StepPhase) -> None:
        """The time since the last lap belongs to ``phase``."""
        now, sent = time.perf_counter(), self._bytes_sent()
        if phase == "match":
            self._match_seconds, self._match_bytes = now - self._then, sent - self._bytes_then
        if self._on_gpu:
            self._mark(phase)
        else:
            self._sums[phase] += now - self._then
        self._then, self._bytes_then = now, sent

    def take(self) -> dict[str, float]:
        """Metrics by catalogue tag: mean seconds per phase since the last call, on a GPU of the last computation."""
        if self._on_gpu:
            self._sums = dict.fromkeys(STEP_PHASES, 0.0)
            for (_, then), (phase, now) in zip(self._marks, self._marks[1:], strict=False):
                assert phase is not None
                now.synchronize()
                self._sums[phase] += then.elapsed_time(now) / 1000  # milliseconds
            self._steps = 1
        found = {f"speed/phase/{phase}": seconds / max(self._steps, 1) for phase, seconds in self._sums.items()}
        self._sums, self._steps = dict.fromkeys(STEP_PHASES, 0.0), 0
        return {**found, "transport/seconds": self._match_seconds, "transport/bytes_sent": float(self._match_bytes)}

    def _mark(self, phase: StepPhase | None) -> None:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        self._marks.append((phase, mark))


def phase(name: StepPhase) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a method of an object with a ``clock``: the time until it returns belongs to the phase."""

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        @wraps(method)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            result = method(*args, **kwargs)
            owner: Any = args[0]
            owner.clock.lap(name)
            return result

        return timed

    return decorate
