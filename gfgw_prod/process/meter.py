"""Progress of a long operation on standard error: a bar in a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, Literal, Self

from gfgw_prod.process.standard_streams import log

Mode = Literal["auto", "bar", "plain", "off"]
LINE_SECONDS = 10.0  # between lines in a log
MB = 1e6


class Meter:
    """Shows how much is done. Every rank makes one; only an enabled one prints.

    Args:
        title: what is being done, such as ``packing``.
        total: amount of work; 0 if unknown.
        unit: of the amount, such as ``images``.
        scale: amounts are divided by it when they are shown: ``MB`` for bytes.
        mode: auto is a bar in a terminal, else lines.
        enabled: whether this rank prints.
    """

    def __init__(
        self, title: str, total: int = 0, unit: str = "", *, scale: float = 1, mode: Mode = "auto", enabled: bool = True
    ):
        if mode == "auto":
            mode = "bar" if sys.stderr.isatty() else "plain"
        self._mode = mode if enabled else "off"
        self._scale = scale
        self._begin(title, total, unit)
        self._last_line = self._started
        self._lock = threading.Lock()
        self._bar: Any = None
        if self._mode == "bar":
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task(title, total=total or None, text="")
            self._bar.start()

    def _begin(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = 0
        self._first: int | None = None if total else 0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            log(f"gfgw: {line}")

    def show(self, title: str, done: int = 0, total: int = 0, unit: str = "images") -> None:
        """Show the progress of the part called ``title``; another title than before starts a new part."""
        if title != self._title:
            self._begin(title, total, unit)
            if self._bar is not None:
                self._bar.reset(self._task, description=title, total=total or None, text="")
        self.advance_to(done)

    def advance_to(self, done: int, note: str = "") -> None:
        """Set the amount done, and show it with a note. The rate counts from the first call."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = done, now
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=self._text(now, note))
        elif self._mode == "plain" and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            log(f"gfgw: {self._title}{': ' if self._total else ''}{self._text(now, note)}")

    def advance(self, more: int) -> None:
        """Add to the amount done; from any thread."""
        with self._lock:
            self.advance_to(self._done + more)

    def close(self) -> None:
        """Restore the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._mode = "off"

    def _text(self, now: float, note: str) -> str:
        if not self._total:
            return note
        done, total = (f"{value / self._scale:,.0f}" for value in (self._done, self._total))
        rate = (self._done - (self._first or 0)) / self._scale / max(now - self._started, 1e-9)
        parts = [f"{done} of {total} {self._unit}", f"{rate:,.0f} {self._unit}/s"]
        if rate > 0 and self._bar is None:  # a bar has a column for it
            parts.append(f"{(self._total - self._done) / self._scale / rate:.0f} s left")
        return ", ".join([*parts, *filter(None, [note])])
