"""What a stop signal does to a process that has nothing to save. Imports nothing large: that would take seconds."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from gfgw_prod.process.exit_codes import PREEMPTED

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
PREEMPTION = (signal.SIGTERM, signal.SIGUSR1)  # of a run; Ctrl-C is an interrupt
# What nohup, or a script's `command &`, has made this process deaf to stays ignored; a request to preempt never does.
IGNORED = frozenset(
    number for number in STOP if number not in PREEMPTION and signal.getsignal(number) is signal.SIG_IGN
)
# A scheduler signals every process of a job, and the launcher passes on what it gets: one request arrives twice.
SAME_REQUEST_SECONDS = 5.0

before_leaving: list[Callable[[], None]] = []  # what has to be put in order, by any thread, when a signal ends a run


def leave_when_told(signals: Iterable[signal.Signals] = STOP) -> None:
    """Make a stop signal end this process: there is nothing to save, and the job may be queued again.

    Importing torch and meeting the other nodes takes seconds to minutes. torch installs handlers of its own when an
    agent's workers start.
    """
    for stop in {*signals} - IGNORED:
        signal.signal(stop, lambda *_: leave())


def leave() -> None:
    """End this process at once, as one that was told to stop."""
    try:
        for action in before_leaving:
            action()
    finally:
        os._exit(PREEMPTED)


class StoppedError(BaseException):
    """A stop signal came. No handler of errors takes it for one of what was being done."""


@contextmanager
def stop_raises() -> Iterator[None]:
    """Within, SIGTERM and SIGUSR1 raise ``StoppedError`` in the main thread; again, later, they end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told_at: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not told_at:
            told_at.append(time.monotonic())
            raise StoppedError
        if time.monotonic() - told_at[0] > SAME_REQUEST_SECONDS:
            leave()

    before = {number: signal.signal(number, stop) for number in PREEMPTION}
    starting.end()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def finish_what_is_left() -> None:
    """Make this process deaf to stop signals: it has its exit code, and leaves within seconds."""
    for stop in STOP:
        signal.signal(stop, signal.SIG_IGN)


class Starting:
    """A run that has nothing to save yet: a signal ends it, whatever its main thread is doing.

    A handler runs between two instructions of Python in the main thread. While that waits in C++ code for its peers,
    there are none. The interpreter's own part of a handler writes the number of a signal into a pipe at once.
    """

    def __init__(self) -> None:
        self._writes: int | None = None

    def begin(self) -> None:
        """From now on a signal ends the process."""
        reads, self._writes = os.pipe()
        os.set_blocking(self._writes, False)
        signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
        for stop in PREEMPTION:
            signal.signal(stop, lambda *_: None)
        threading.Thread(target=self._wait, args=(reads,), name="starting", daemon=True).start()

    def end(self) -> None:
        """From now on signals are the business of their handlers."""
        if self._writes is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._writes)
            self._writes = None

    def _wait(self, reads: int) -> None:
        while numbers := os.read(reads, 64):
            if not {*PREEMPTION}.isdisjoint(numbers):
                leave()
        os.close(reads)


starting = Starting()


def leave_before_training() -> None:
    """Make a stop signal end a run, or a packing, that is still starting."""
    if sys.argv[1:2] in (["train"], ["pack"]):
        starting.begin()
