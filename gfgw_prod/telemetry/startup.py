"""Time from the start of a run to the end of its first step, by phase."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, get_args

from gfgw_prod.process import clock

Phase = Literal["launcher", "imports", "rendezvous", "data", "generator", "bank", "checkpoint", "first_step"]
PHASES: tuple[Phase, ...] = get_args(Phase)
LONG_SECONDS = 10.0  # a longer start is logged


class Startup:
    """Phases of this process's start, one after the other. Make it when everything has been imported.

    The phase ``launcher`` exists under the elastic launcher only. It begins with the launcher, or for a restart when
    the launcher notices the failure, and ends when this process begins.

    Args:
        again: whether this process goes on with a new peer; then the phases begin now.
    """

    def __init__(self, *, again: bool = False) -> None:
        self._seconds: dict[Phase, float] = {}
        self._last, started = clock.now(), None if again else clock.process_started()
        launched = os.environ.pop(clock.LAUNCHED_AT, None)
        if started is not None:
            if launched is not None:
                self._seconds["launcher"] = max(started - float(launched), 0.0)
            self._seconds["imports"] = self._last - started

    def done(self, phase: Phase) -> None:
        """End a phase; the next one begins."""
        then, self._last = self._last, clock.now()
        self._seconds[phase] = self._last - then

    @property
    def total(self) -> float:
        """Seconds of all phases so far."""
        return sum(self._seconds.values())

    def end(self, log: Callable[[str], None]) -> dict[str, float]:
        """End the last phase, and log a long start. Returns seconds by tag of the catalogue."""
        self.done("first_step")
        if self.total > LONG_SECONDS:
            log(str(self))
        return self.values()

    def values(self) -> dict[str, float]:
        """Seconds by tag of the catalogue."""
        return {f"startup/{phase}": seconds for phase, seconds in self._seconds.items()}

    def __str__(self) -> str:
        parts = (f"{phase.replace('_', ' ')} {seconds:.1f}" for phase, seconds in self._seconds.items())
        return f"first step after {self.total:.1f} s: " + ", ".join(parts)
