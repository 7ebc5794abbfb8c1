"""What a stop signal does in each phase of a process; the table is in docs/faults.md. Imports nothing heavy.

- starting: ``exit_on_stop_signals``;
- training: ``on_stop_request``;
- exit code decided: ``ignore_stop_signals``;
- launcher with running ranks: ``launcher.torch_changes.stop_signals_deferred``.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from gfgw_prod.process.exit_codes import PREEMPTED

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
PREEMPTION = (signal.SIGTERM, signal.SIGUSR1)  # to a run; Ctrl-C is an interrupt
# Signals that nohup, or a script's `command &`, has made this process ignore stay ignored. Preemption never is.
IGNORED = frozenset(
    number for number in STOP if number not in PREEMPTION and signal.getsignal(number) is signal.SIG_IGN
)
# A scheduler signals every process of a job, and the launcher forwards what it gets: one request arrives twice.
SAME_REQUEST_SECONDS = 5.0

before_exit: list[Callable[[], None]] = []  # run by ``exit_preempted``, in any thread
_exit_watch: list[tuple[int, threading.Thread]] = []  # at most one: the pipe's write end, the thread that reads it


class StopRequestedError(BaseException):
    """Work was given up because of a stop signal. A BaseException, so that no handler of errors catches it."""


def exit_preempted() -> NoReturn:
    """End this process at once with exit code 75."""
    try:
        for action in before_exit:
            action()
    finally:
        os._exit(PREEMPTED)


def exit_on_stop_signals(signals: Iterable[signal.Signals] = STOP) -> None:
    """Exit with 75 at once on a stop signal, whatever the main thread is doing: there is nothing to save yet.

    Importing torch and meeting the other nodes takes seconds to minutes. Python runs a handler between two instructions
    of the main thread, and there are none while that waits in C++ code for its peers. But the interpreter writes the
    signal's number to a pipe at once, and a thread reads it there.
    """
    _end_exit_watch()
    watched = {*signals} - IGNORED
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    for number in watched:
        signal.signal(number, lambda *_: None)
    thread = threading.Thread(target=_exit_when_signalled, args=(reads, watched), name="exit-watch", daemon=True)
    _exit_watch.append((writes, thread))
    thread.start()


def set_stop_handlers(handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]]) -> None:
    """Install handlers in place of ``exit_on_stop_signals``. A signal that came before still exits."""
    for number, handler in handlers.items():
        signal.signal(number, handler)
    _end_exit_watch()


def on_stop_request(act: Callable[[], None]) -> None:
    """Call ``act`` in the main thread at the first SIGTERM or SIGUSR1. One that comes again, later, exits at once."""
    requested_at: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal requested_at
        now = time.monotonic()
        if requested_at is None:
            requested_at = now
            act()
        elif now - requested_at > SAME_REQUEST_SECONDS:
            exit_preempted()

    set_stop_handlers(dict.fromkeys(PREEMPTION, handle))


def ignore_stop_signals() -> None:
    """Ignore stop signals: the exit code is decided, and the process ends within seconds."""
    if in_main_thread():
        for number in STOP:
            signal.signal(number, signal.SIG_IGN)


def in_main_thread() -> bool:
    """Whether Python lets this thread install handlers: a run in another thread installs none."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Restore at the end the handlers of stop signals, and what ``exit_preempted`` runs."""
    handlers = {number: signal.getsignal(number) for number in STOP}
    actions = before_exit.copy()
    try:
        yield
    finally:
        before_exit[:] = actions
        if in_main_thread():
            for number, handler in handlers.items():
                if handler is not None:  # None: installed by other code than Python's
                    signal.signal(number, handler)


def _end_exit_watch() -> None:
    while _exit_watch:
        writes, thread = _exit_watch.pop()
        signal.set_wakeup_fd(-1)
        os.write(writes, b"\0")  # a forked child may hold the pipe open, so that closing it ends nothing
        os.close(writes)
        thread.join()  # it may have read a signal, and is about to exit: nothing must begin now


def _exit_when_signalled(reads: int, watched: set[signal.Signals]) -> None:
    while numbers := os.read(reads, 64):
        if not watched.isdisjoint(numbers):
            exit_preempted()
        if 0 in numbers:
            break
    os.close(reads)
