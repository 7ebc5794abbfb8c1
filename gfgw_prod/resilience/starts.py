"""A run that crashes again and again without a new checkpoint is not started for ever: exit code 76."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from gfgw_prod.checkpoint.finding import step_directories
from gfgw_prod.checkpoint.storage import Storage
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import NoProgressError, UserError, reason_of
from gfgw_prod.process.signals import before_exit

FILE = "starts.json"
WRITTEN_SECONDS = 2.0  # at most, until rank 0 has counted a start that all ranks know of


class StartCounter:
    """How often a run was started from where it is without coming further, in a file of the run directory.

    As a context it is the life of this start: one that ends in order is not counted. Rank 0 counts, and takes back; so
    does any rank that finds bad input, as the launcher may stop rank 0 before it can, and any that is told to stop, as
    its peers then crash for want of it.

    Args:
        most: restarts without a new checkpoint.
    """

    def __init__(self, run_dir: Path, most: int, world: World):
        self._file, self._most, self._world = run_dir / FILE, most, world
        self._present = RankLocks(run_dir, world.rank, world.world_size)
        self._step = self._before = 0
        self._counts = False
        self._lock = threading.RLock()  # a signal may end the run in any thread, also within a handler

    def count(self, storages: Sequence[Storage]) -> None:
        """Counts this start, before anything that may crash. Collective.

        Args:
            storages: whose newest checkpoint says how far the run has come.

        Raises:
            NoProgressError: if too many were counted before.
            UserError: if a storage cannot be read.
        """
        problem, before = None, 0
        step = self._world.together(lambda: _newest_step(storages) if self._world.is_main else 0)
        if self._world.is_main:
            last, before = self._read()
            # A checkpoint that was lost is no progress; one that comes after that is.
            before = before if step <= last else 0
            if before > self._most:
                problem = (
                    f"{before} starts in a row crashed without a new checkpoint after step {step}; checkpoints are as "
                    f"they were. When the cause is mended, remove {self._file} (or raise resilience.max_no_progress, "
                    f"now {self._most})"
                )
        problem, step, before = self._world.broadcast((problem, step, before))
        if problem is not None:
            raise NoProgressError(problem)
        self._present.begin()
        before_exit.append(self.on_stop_signal)
        with self._lock:
            self._step, self._before = step, before
            self._counts = True
        # From here on every rank can take the start back, and knows whether another has gone. Only then it is counted.
        self._world.barrier()
        if self._world.is_main:
            with self._lock:
                if self._counts:
                    self._write(before + 1)

    def uncount(self) -> None:
        """This start ends in order, and is no crash."""
        with self._lock:
            if self._counts:
                self._counts = False
                self._write(self._before)

    def on_stop_signal(self) -> None:
        """This rank leaves because of a signal. It is the run that was told to stop, unless a rank had gone before.

        A launcher sends the same signal to those that are left after a crash, which counts. Of ranks that are all told
        to stop the first to leave finds the others there.
        """
        with self._lock:
            if not self._counts or not self._present.all():
                return
            if not self._world.is_main:
                # Nothing is taken back from another start that has begun meanwhile, or before it has been counted.
                deadline = time.monotonic() + WRITTEN_SECONDS
                while not self._is_counted():
                    if time.monotonic() > deadline:
                        return
                    time.sleep(0.02)
            self.uncount()

    def __enter__(self) -> StartCounter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        orderly = kind is None or issubclass(kind, UserError | NoProgressError | KeyboardInterrupt)
        # When a run has finished or was told to stop, rank 0 may yet crash in what is left. After bad input it may be
        # stopped before it has any.
        if orderly and (self._world.is_main or (kind is not None and self._is_counted())):
            self.uncount()
        with self._lock:
            self._counts = False  # a signal from here on comes after the end
        self._present.end()

    def _is_counted(self) -> bool:
        return self._read() == (self._step, self._before + 1)

    def _read(self) -> tuple[int, int]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return int(found["step"]), int(found["starts"])
        except (OSError, ValueError, TypeError, KeyError):  # none yet, or nothing that we wrote
            return 0, 0

    def _write(self, starts: int) -> None:
        partial = self._file.with_name(f".{FILE}.{self._world.rank}.partial")
        with suppress(OSError):  # a full disk has its own consequences
            with partial.open("w", encoding="utf-8") as file:
                json.dump({"step": self._step, "starts": starts}, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._file)


def _newest_step(storages: Sequence[Storage]) -> int:
    newest = 0
    for storage in storages:
        try:
            newest = max((newest, *(step for step, _ in step_directories(storage))))
        except Exception as error:  # the client of an object store raises kinds of its own
            raise UserError(f"checkpoints in {storage} cannot be listed: {reason_of(error)}") from None
    return newest


LOCKS_FILE = ".ranks"


class RankLocks:
    """This rank among the others: rank ``n`` has the ``n``-th byte of a file for its own.

    Where there are no locks, everyone counts as there.
    """

    def __init__(self, run_dir: Path, rank: int, world_size: int):
        self._path, self._rank, self._world_size = run_dir / LOCKS_FILE, rank, world_size
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
