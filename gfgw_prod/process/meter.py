"""Progress of a long operation on standard error: a bar in a terminal, a line every ten seconds in a log.

In a log a line appears at least every half minute, also while nothing advances: a reader sees that the process lives.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, Literal, Self

from gfgw_prod.process.standard_streams import log, logs_text

Mode = Literal["auto", "bar", "plain", "off"]
LINE_SECONDS = 10.0  # at least, between lines in a log
SILENT_SECONDS = 30.0  # at most, without a line of any meter
MB = 1e6


class Meter:
    """Shows how much is done. Every rank makes one; only an enabled one prints.

    Args:
        total: amount of work in units; 0 if unknown.
        scale: amounts are divided by it when they are shown: ``MB`` for bytes.
        mode: auto is a bar in a terminal, else lines.
        enabled: whether this rank prints.
    """

    _any_line = 0.0  # time of the last line of any meter: that of an evaluation runs within that of training

    def __init__(
        self, title: str, total: int = 0, unit: str = "", *, scale: float = 1, mode: Mode = "auto", enabled: bool = True
    ):
        if mode == "auto":
            mode = "bar" if sys.stderr.isatty() and logs_text() else "plain"
        self._mode = mode if enabled else "off"
        self._scale = scale
        self._begin(title, total, unit)
        self._last_line = Meter._any_line = self._started
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._bar: Any = None
        if self._mode == "bar":
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task(title, total=total or None, text="")
            self._bar.start()
        elif self._mode == "plain":
            threading.Thread(target=self._break_silences, name="meter", daemon=True).start()

    def _begin(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done, self._note = 0, ""
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

    def advance_to(self, done: int, note: str | None = None) -> None:
        """Set the amount done, and show it with a note (default: the last). The rate counts from the first call."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = done, now
        self._done = done
        self._note = self._note if note is None else note
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=self._text(now))
        elif self._mode == "plain" and now - self._last_line >= LINE_SECONDS:
            self._print(now)

    def advance(self, more: int) -> None:
        """Add to the amount done; from any thread."""
        with self._lock:
            self.advance_to(self._done + more)

    def close(self) -> None:
        """Restore the terminal, and print no more lines."""
        self._closed.set()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._mode = "off"

    def _break_silences(self) -> None:
        """Print a line whenever no meter has printed one for a while. The body of a thread."""
        while not self._closed.wait(max(Meter._any_line + SILENT_SECONDS - time.monotonic(), 0.1)):
            now = time.monotonic()
            if now - Meter._any_line >= SILENT_SECONDS:
                self._print(now)

    def _print(self, now: float) -> None:
        self._last_line = Meter._any_line = now
        log(f"gfgw: {self._title}{': ' if self._total else ''}{self._text(now)}")

    def _text(self, now: float) -> str:
        if not self._total:
            return self._note
        done, total = (f"{value / self._scale:,.0f}" for value in (self._done, self._total))
        rate = (self._done - (self._first or 0)) / self._scale / max(now - self._started, 1e-9)
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        parts = [f"{done} of {total} {self._unit}", f"{speed} {self._unit}/s"]
        if rate > 0 and self._bar is None:  # a bar has a column for it
            parts.append(f"{(self._total - self._done) / self._scale / rate:.0f} s left")
        return ", ".join([*parts, *filter(None, [self._note])])
