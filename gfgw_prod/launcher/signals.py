"""What a stop signal does to an agent without workers. torch installs handlers of its own when workers start."""

import os
import signal

from gfgw_prod.resilience.exit_codes import PREEMPTED

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def leave_when_told() -> None:
    """Make a stop signal end this process: without workers there is nothing to save, and the job may be queued again.

    Importing torch and meeting the other nodes takes seconds to minutes.
    """
    for stop in STOP:
        signal.signal(stop, lambda *_: os._exit(PREEMPTED))


def finish_what_is_left() -> None:
    """Make this process deaf to stop signals: it has its exit code, and leaves within seconds."""
    for stop in STOP:
        signal.signal(stop, signal.SIG_IGN)
