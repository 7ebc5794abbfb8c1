"""Detects that this process is stuck: without progress for too long, it writes its stacks to a file and exits.

The timer is ``faulthandler``'s: a C thread that does not need the GIL, so no Python code can hold it up. A sign of
progress only notes the time; once a second a Python thread restarts the timer. If another thread holds the GIL forever,
that Python thread is stuck as well, and the timer expires.

A process has one such timer, hence one ``watch``, and code anywhere may report progress to it.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gfgw_prod.process.signals import before_exit
from gfgw_prod.process.stacks import StacksFile
from gfgw_prod.process.standard_streams import log

TICK_SECONDS = 1.0  # between restarts of the timer; a limit may be exceeded by this much


class Watch:
    """The watchdog of this process."""

    def __init__(self) -> None:
        self._at, self._doing = time.monotonic(), "starting"
        self._limit = self._tick = 0.0
        self._rank = 0
        self._pauses = 0
        self._file: StacksFile | None = None
        self._lock = threading.Lock()

    @contextmanager
    def over(self, limit_seconds: float, run_dir: Path, rank: int) -> Iterator[None]:
        """Context in which this process exits if its rank makes no progress for ``limit_seconds``.

        Its stacks go to the run directory, or to standard error if no file can be made there.
        """
        self._limit, self._tick, self._rank = limit_seconds, min(TICK_SECONDS, limit_seconds / 4), rank
        before_exit.append(self._end)
        over = threading.Event()
        with suppress(OSError):
            self._file = StacksFile(run_dir, rank)
        with self._lock:
            self.progress("starting")
            self._restart_timer()
        threading.Thread(target=self._tick_until, args=(over,), name="watchdog", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            with self._lock:
                file = self._file
                self._end()
                before_exit.remove(self._end)
                if file is not None:
                    file.close()

    def progress(self, doing: str | None = None) -> None:
        """Report progress, and what this rank does next."""
        if doing is not None:
            self._doing = doing
        self._at = time.monotonic()

    def silence(self) -> float:
        """Seconds since the last progress; 0 while there is no limit."""
        return time.monotonic() - self._at if self._limit and not self._pauses else 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context without a limit, for work that takes as long as a network or a disk takes."""
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
                self._restart_timer()

    def _restart_timer(self) -> None:
        """Restart the timer. It expires one tick after the limit, as progress is seen only at the next tick."""
        if not self._limit or self._pauses:
            return
        left = self._limit + self._tick - (time.monotonic() - self._at)
        stderr = 2
        file = stderr if self._file is None else self._file.fileno()
        faulthandler.dump_traceback_later(max(left, 0.001), exit=True, file=file)
        if self._file is not None:
            self._file.describe(self._doing)

    def _tick_until(self, over: threading.Event) -> None:
        seen, logged, pause = 0.0, False, self._tick
        while not over.wait(pause):
            with self._lock:
                if self._at != seen:
                    seen, logged = self._at, False
                    self._restart_timer()
                left = seen + self._limit - time.monotonic()
                late = self._limit and not self._pauses and left <= 0
            if late and not logged:
                logged = True
                self._log_hang()
            pause = min(left, self._tick) if left > 0 else self._tick  # so that a hang is logged before the timer ends

    def _log_hang(self) -> None:
        place = "the next lines" if self._file is None else self._file.path
        log(
            f"gfgw: rank {self._rank} made no progress for {self._limit:g} s ({self._doing}); "
            f"it ends, and its stacks are in {place}",
            "error",
        )

    def _end(self) -> None:
        """End the watch; without the lock, as a signal handler may call it. Remove the file unless this rank was stuck.

        A process that was stopped (SIGSTOP) beyond the limit resumes when its peers have left. It may see that they
        have before its own timer expires, and then writes its stacks here.
        """
        stuck, file = self.silence() >= self._limit > 0, self._file
        self._limit, self._file = 0.0, None
        faulthandler.cancel_dump_traceback_later()
        if file is not None and stuck:
            faulthandler.dump_traceback(file.fileno())
        elif file is not None:
            file.discard()


watch = Watch()
