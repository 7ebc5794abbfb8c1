"""Which ranks of a run are there: each holds a lock in the run directory, which ends as its process does, anyhow."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

FILE = ".ranks"


class Presence:
    """This rank among the others: rank ``n`` has the ``n``-th byte of a file for its own.

    Where there are no locks, everyone counts as there.
    """

    def __init__(self, run_dir: Path, rank: int, world_size: int):
        self._path, self._rank, self._world_size = run_dir / FILE, rank, world_size
        self._file: int | None = None

    def begin(self) -> None:
        """From now on this rank is there, until it ends."""
        with suppress(OSError):
            # Open to the end: these locks go as soon as the process closes the file anywhere.
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._rank)

    def all(self) -> bool:
        """Whether no rank has gone. Ask when all have begun."""
        return not any(self._has_gone(rank) for rank in range(self._world_size) if rank != self._rank)

    def end(self) -> None:
        """This rank has gone for its peers: what its process still has to do is of no account."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _has_gone(self, rank: int) -> bool:
        if self._file is None:
            return False
        try:
            # Shared: two that ask at once must not take each other for the one they ask for.
            fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, rank)
        except OSError:
            return False
        return True
