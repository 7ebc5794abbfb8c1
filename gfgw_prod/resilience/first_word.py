"""Which rank of a node says why they end: the first that has a reason. Imports nothing heavy.

Ranks fail alike, and their launcher stops the others once one has gone. One that is named in advance may still be
importing then, and nobody would have said a word.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache

PLACE = "GFGW_FIRST_WORD"  # the elastic launcher's pipe, for its ranks: whoever gets the byte in it may speak


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


def taken(otherwise: bool) -> bool:
    """Whether this rank has the first word; each start of a node's ranks has one.

    Args:
        otherwise: the answer where no launcher of ours offers it, or there is no /proc.
    """
    try:
        pipe = os.open(os.environ[PLACE], os.O_RDONLY | os.O_NONBLOCK)
    except (KeyError, OSError):
        return otherwise
    try:
        return bool(os.read(pipe, 1)) or otherwise  # nothing: the launcher has gone
    except BlockingIOError:
        return False
    finally:
        os.close(pipe)
