"""Which rank of a node says why they end: the first that has a reason. Imports nothing heavy.

Ranks fail alike, and their launcher stops the others once one has gone. One that is named in advance may still be
importing then, and nobody would have said a word.
"""

from __future__ import annotations

import fcntl
import os
import select
from contextlib import suppress
from functools import cache

from gfgw_prod.process.standard_streams import log

PLACE = "GFGW_FIRST_WORD"  # the elastic launcher's pipe, for its ranks: whoever finds a byte in it may speak


@cache
def _pipe() -> tuple[int, int]:
    reads, writes = os.pipe()
    for end in (reads, writes):
        os.set_blocking(end, False)
    os.environ[PLACE] = f"/proc/{os.getpid()}/fd/{reads}"
    return reads, writes


def offer() -> None:
    """Gives the first word to the ranks that this launcher is about to start, whether or not those before took it."""
    reads, writes = _pipe()
    with suppress(BlockingIOError):
        os.read(reads, 1)
    os.write(writes, b"1")


def say(line: str, *, otherwise: bool) -> None:
    """One line on standard error, if this rank has the first word; each start of a node's ranks has one.

    Args:
        otherwise: whether it speaks where no launcher of ours has started it, or there is no /proc.
    """
    place = os.environ.get(PLACE, "")
    if not place.startswith(f"/proc/{os.getppid()}/"):  # what a rank starts has its environment, and is no rank
        place = ""
    try:
        with open(place, "rb", buffering=0, opener=_at_once) as pipe:
            fcntl.flock(pipe, fcntl.LOCK_EX)  # nobody leaves, and has this rank stopped, before the line is out
            if select.select([pipe], [], [], 0)[0]:
                log(line)
                pipe.read(1)
    except OSError:
        if otherwise:
            log(line)


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
