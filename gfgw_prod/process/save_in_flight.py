"""Lets a launcher know whether one of its ranks is writing a checkpoint. Imports nothing heavy.

While a rank saves, it holds a shared lock on an unnamed file of the launcher. The lock ends with the rank.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

FILE = "GFGW_SAVES"  # the launcher's file, for its ranks


@cache
def _file() -> int:
    file = os.memfd_create("saves")
    os.environ[FILE] = f"/proc/{os.getpid()}/fd/{file}"
    return file


def allow_saves() -> None:
    """Let the ranks that this launcher starts from now on show when they save."""
    with suppress(AttributeError, OSError):  # no Linux
        _file()


def is_any_saving() -> bool:
    """Whether a rank of this launcher is saving."""
    try:
        fcntl.flock(_file(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (AttributeError, OSError):
        return False
    fcntl.flock(_file(), fcntl.LOCK_UN)
    return False


@contextmanager
def saving() -> Iterator[None]:
    """Context in which this rank saves. Without effect if our launcher did not start it."""
    try:
        file = os.open(os.environ.get(FILE, ""), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield
    finally:
        os.close(file)
