"""How far something long is, on standard error: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, Literal, Self

from gfgw_prod.process.standard_streams import log

Mode = Literal["auto", "bar", "plain", "off"]
TOLD_EVERY_SECONDS = 10.0
MB = 1e6


class Meter:
    """Tells how much is done. Made by every rank alike, and silent but on the one that speaks.

    Args:
        title: what is being done, as in ``packing``.
        total: how much there is to do; 0 if that is not known.
        unit: in which it is counted, as in ``images``.
        size: of a unit, in which it is shown: ``MB`` where bytes are counted.
        mode: auto is a bar in a terminal, else lines.
        speaks: whether this rank does.
    """

    def __init__(
        self, title: str, total: int = 0, unit: str = "", *, size: float = 1, mode: Mode = "auto", speaks: bool = True
    ):
        if mode == "auto":
            mode = "bar" if sys.stderr.isatty() else "plain"
        self._mode = mode if speaks else "off"
        self._title, self._total, self._unit, self._size = title, total, unit, size
        self._done, self._first = 0, None if total else 0
        self._begun = self._told = time.monotonic()
        self._lock = threading.Lock()
        self._bar: Any = None
        if self._mode == "bar":
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task(title, total=total or None, told="")
            self._bar.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def say(self, line: str) -> None:
        """A line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            log(f"gfgw: {line}")

    def turn_to(self, title: str, total: int = 0, unit: str = "") -> None:
        """Something else is being done, of which nothing is done yet."""
        if title == self._title:
            return
        self._title, self._total, self._unit = title, total, unit
        self._done, self._first, self._begun = 0, None if total else 0, time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._task, description=title, total=total or None, told="")

    def at(self, done: int) -> None:
        """So much is done. What was done before the first call has no part in the rate."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._begun = done, now
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, told=self._words(now))
        elif self._mode == "plain" and now - self._told >= TOLD_EVERY_SECONDS:
            self._told = now
            log(f"gfgw: {self._title}{': ' if self._total else ''}{self._words(now)}")

    def add(self, more: int) -> None:
        """So much more is done; of any thread."""
        with self._lock:
            self.at(self._done + more)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._mode = "off"

    def _words(self, now: float) -> str:
        if not self._total:
            return ""
        done, total = (f"{value / self._size:,.0f}" for value in (self._done, self._total))
        rate = (self._done - (self._first or 0)) / self._size / max(now - self._begun, 1e-9)
        return f"{done} of {total} {self._unit}, {rate:,.0f} {self._unit}/s"
