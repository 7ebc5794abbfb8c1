"""Finds this process stuck: without a sign of progress for too long it leaves its stacks in a file, and ends.

``faulthandler`` keeps the time in a thread outside the GIL, so nothing that Python code does can stop it. Signs of
progress only note the time; a thread of Python sets the timer anew once a second. Where another thread holds the GIL
for ever, that thread is stuck as well, and the timer runs out.

There is one timer in a process, so the watch is one, too, and signs of progress may come from anywhere.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gfgw_prod.process.signals import before_leaving
from gfgw_prod.process.stacks import StacksFile
from gfgw_prod.process.standard_streams import log

TICK_SECONDS = 1.0  # between looks; what a limit may be late by


class Watch:
    """The watch over this process."""

    def __init__(self) -> None:
        self._at, self._doing = time.monotonic(), "starting"
        self._limit = self._tick = 0.0
        self._rank = 0
        self._pauses = 0
        self._file: StacksFile | None = None
        self._lock = threading.Lock()

    @contextmanager
    def over(self, limit_seconds: float, run_dir: Path, rank: int) -> Iterator[None]:
        """Within, a rank may be without progress for so long. Its stacks go to the run directory.

        If nothing can be written there, they go to standard error.
        """
        self._limit, self._tick, self._rank = limit_seconds, min(TICK_SECONDS, limit_seconds / 4), rank
        before_leaving.append(self._end)
        over = threading.Event()
        with suppress(OSError):
            self._file = StacksFile(run_dir, rank)
        with self._lock:
            self.progress("starting")
            self._set()
        threading.Thread(target=self._look_on, args=(over,), name="watchdog", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            with self._lock:
                self._end()

    def progress(self, doing: str | None = None) -> None:
        """A sign of progress, and what comes next."""
        if doing is not None:
            self._doing = doing
        self._at = time.monotonic()

    def silence(self) -> float:
        """Seconds since the last sign of progress; 0 while there is no limit."""
        return time.monotonic() - self._at if self._limit and not self._pauses else 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, there is no limit: for what takes as long as a network or a disk takes."""
        with self._lock:
            self._pauses += 1
            if self._limit:
                faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            with self._lock:
                self.progress()
                self._pauses -= 1
                self._set()

    def _set(self) -> None:
        """Sets the timer. It runs out a tick late: progress is seen at the next look."""
        if not self._limit or self._pauses:
            return
        left = self._limit + self._tick - (time.monotonic() - self._at)
        stderr = 2
        file = stderr if self._file is None else self._file.fileno()
        faulthandler.dump_traceback_later(max(left, 0.001), exit=True, file=file)
        if self._file is not None:
            self._file.describe(self._doing)

    def _look_on(self, over: threading.Event) -> None:
        seen, told, pause = 0.0, False, self._tick
        while not over.wait(pause):
            with self._lock:
                if self._at != seen:
                    seen, told = self._at, False
                    self._set()
                left = seen + self._limit - time.monotonic()
                late = self._limit and not self._pauses and left <= 0
            if late and not told:
                told = True
                self._tell()
            pause = min(left, self._tick) if left > 0 else self._tick  # to tell a whole tick before the timer runs out

    def _tell(self) -> None:
        place = "the next lines" if self._file is None else self._file.path
        log(
            f"gfgw: rank {self._rank} made no progress for {self._limit:g} s ({self._doing}); "
            f"it ends, and its stacks are in {place}"
        )

    def _end(self) -> None:
        """Ends the watch; takes no lock, as it may be called by a signal's handler. The file goes, with one exception.

        A process that was stopped for too long goes on when its peers have left, and may see that they have before its
        own timer runs out.
        """
        stuck, file = self.silence() >= self._limit > 0, self._file
        self._limit, self._file = 0.0, None
        faulthandler.cancel_dump_traceback_later()
        if file is not None and stuck:
            faulthandler.dump_traceback(file.fileno())
        elif file is not None:
            file.discard()


watch = Watch()
