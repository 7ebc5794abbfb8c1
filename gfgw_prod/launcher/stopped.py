"""Workers that somebody stopped (SIGSTOP, a scheduler): they must go on to notice anything."""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# A stopped worker made its last step as late as the peer that missed it, or a little later. Then its own limit has
# passed too when it goes on, and it leaves its stacks, whether it sees first that this is so or that its peer is gone.
LATER_SECONDS = 1.0


def is_stopped(process: int) -> bool:
    """Whether the process is stopped by a signal, so that SIGCONT helps; where there is no /proc, nobody knows."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def let_go_on(processes: Iterable[int], after_seconds: float = 0.0) -> None:
    """Continues the stopped ones among the processes."""
    stopped = [process for process in processes if is_stopped(process)]
    if stopped:
        time.sleep(after_seconds)
    for process in stopped:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)
