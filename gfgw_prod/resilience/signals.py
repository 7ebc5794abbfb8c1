"""What a stop signal does to a process that has nothing to save. Imports nothing: that would take seconds."""

import os
import signal
import sys
from collections.abc import Iterable

from gfgw_prod.resilience.exit_codes import PREEMPTED

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def leave_when_told(signals: Iterable[signal.Signals] = STOP) -> None:
    """Make a stop signal end this process: there is nothing to save, and the job may be queued again.

    Importing torch and meeting the other nodes takes seconds to minutes. torch installs handlers of its own when an
    agent's workers start.
    """
    for stop in signals:
        signal.signal(stop, lambda *_: os._exit(PREEMPTED))


def leave_before_training() -> None:
    """Make a stop signal end a run alone that is still starting. Of a rank, its launcher knows what its death means."""
    if sys.argv[1:2] == ["train"] and "RANK" not in os.environ:
        leave_when_told((signal.SIGTERM, signal.SIGUSR1))


def finish_what_is_left() -> None:
    """Make this process deaf to stop signals: it has its exit code, and leaves within seconds."""
    for stop in STOP:
        signal.signal(stop, signal.SIG_IGN)
