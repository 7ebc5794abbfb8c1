"""One rank per node reports why its ranks exit: the first that has a reason. Imports nothing heavy.

Ranks often fail alike, and the launcher stops the others once one has exited. If a fixed rank reported, it might still
be importing then, and nobody would have reported anything.
"""

from __future__ import annotations

import fcntl
import os
import select
from contextlib import suppress
from functools import cache

from gfgw_prod.process.standard_streams import log

# The elastic launcher's pipe, for its ranks. A byte in it is the permission to report; who reports reads the byte.
PIPE = "GFGW_FIRST_WORD"


@cache
def _pipe() -> tuple[int, int]:
    reads, writes = os.pipe()
    for end in (reads, writes):
        os.set_blocking(end, False)
    os.environ[PIPE] = f"/proc/{os.getpid()}/fd/{reads}"
    return reads, writes


def allow_one_report() -> None:
    """Allow one report by the ranks that this launcher is about to start, whether or not the last ones reported."""
    reads, writes = _pipe()
    with suppress(BlockingIOError):
        os.read(reads, 1)
    os.write(writes, b"1")


def report_first(line: str, *, without_launcher: bool) -> None:
    """Log a line, if no other rank of this node has reported since the launcher started them.

    Args:
        without_launcher: whether to log it if our launcher did not start this process, or there is no /proc.
    """
    path = os.environ.get(PIPE, "")
    if not path.startswith(f"/proc/{os.getppid()}/"):  # a child of a rank inherits the variable, but is no rank
        path = ""
    try:
        with open(path, "rb", buffering=0, opener=_open_non_blocking) as pipe:
            fcntl.flock(pipe, fcntl.LOCK_EX)  # another rank must not exit, and have this one killed, before its line
            if select.select([pipe], [], [], 0)[0]:
                log(line, "error")
                pipe.read(1)
    except OSError:
        if without_launcher:
            log(line, "error")


def _open_non_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
