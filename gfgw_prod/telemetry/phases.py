"""What the time of a step is made of."""

from __future__ import annotations

import time
from typing import Literal, get_args

import torch

StepPhase = Literal["inputs", "generate", "match", "regress", "reduce", "check", "update"]
STEP_PHASES: tuple[StepPhase, ...] = get_args(StepPhase)


class StepClock:
    """Laps of a step. On a CPU it reads the host's clock and adds up; on a GPU it puts marks into its stream.

    Marks are read when they are asked for, once per record: nothing waits for the GPU in a step.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._sums = dict.fromkeys(STEP_PHASES, 0.0)
        self._laps = 0
        self._then = 0.0
        self._marks: list[tuple[StepPhase | None, torch.cuda.Event]] = []  # of the last step

    def begin(self) -> None:
        """A computation of a step begins."""
        self._laps += 1
        if self._on_gpu:
            self._marks = []
            self._mark(None)
        else:
            self._then = time.perf_counter()

    def lap(self, phase: StepPhase) -> None:
        """The phase that ends now."""
        if self._on_gpu:
            self._mark(phase)
            return
        then, self._then = self._then, time.perf_counter()
        self._sums[phase] += self._then - then

    def take(self) -> dict[str, float]:
        """Seconds by tag of the catalogue: means over the computations since the last call; on a GPU, of the last."""
        if self._on_gpu:
            self._sums = dict.fromkeys(STEP_PHASES, 0.0)
            for (_, then), (phase, now) in zip(self._marks, self._marks[1:], strict=False):
                assert phase is not None
                now.synchronize()
                self._sums[phase] += then.elapsed_time(now) / 1000  # milliseconds
            self._laps = 1
        found = {f"speed/phase/{phase}": seconds / max(self._laps, 1) for phase, seconds in self._sums.items()}
        self._sums, self._laps = dict.fromkeys(STEP_PHASES, 0.0), 0
        return found

    def _mark(self, phase: StepPhase | None) -> None:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        self._marks.append((phase, mark))
