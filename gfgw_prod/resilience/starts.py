"""Count starts without a new checkpoint, and end a crash loop with exit code 76."""

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
from gfgw_prod.process.durable import write_whole
from gfgw_prod.process.exit_codes import NoProgressError, UserError, reason_of
from gfgw_prod.process.signals import before_exit

FILE = "starts.json"
LOCKS_FILE = ".ranks"
COUNTED_SECONDS = 2.0  # limit until rank 0 has written the count of a start that all ranks have joined


class StartCounter:
    """Counts the crashed starts since the newest checkpoint, in a file of the run directory.

    Use it as a context around a start: an orderly end uncounts the start. Rank 0 counts and uncounts. A rank that finds
    bad input uncounts too, because the launcher may kill rank 0 before it can; so does a rank that gets a stop signal,
    because its peers then crash without it.
    """

    def __init__(self, run_dir: Path, max_restarts: int, world: World):
        self._file, self._max_restarts, self._world = run_dir / FILE, max_restarts, world
        self._locks = RankLocks(run_dir, world.rank, world.world_size)
        self._step = self._earlier = 0
        self._counted = False
        self._lock = threading.RLock()  # a signal may end the run in any thread, also within a handler

    def count(self, storages: Sequence[Storage]) -> None:
        """Count this start. Call it before anything that may crash. Collective.

        Args:
            storages: their newest checkpoint is the progress of the run.

        Raises:
            NoProgressError: if too many starts have crashed.
            UserError: if a storage cannot be listed.
        """
        problem, earlier = None, 0
        step = self._world.on_all_ranks(lambda: _newest_step(storages) if self._world.is_main else 0)
        if self._world.is_main:
            last, earlier = self._read()
            # A newer checkpoint is progress; the loss of the newest is not.
            earlier = earlier if step <= last else 0
            if earlier > self._max_restarts:
                problem = (
                    f"{earlier} starts in a row crashed without a new checkpoint after step {step}; this one "
                    f"changes nothing. When the cause is fixed, remove {self._file} (or raise "
                    f"resilience.max_no_progress, now {self._max_restarts})"
                )
        problem, step, earlier = self._world.broadcast((problem, step, earlier))
        if problem is not None:
            raise NoProgressError(problem)
        self._locks.acquire()
        before_exit.append(self.on_stop_signal)
        with self._lock:
            self._step, self._earlier = step, earlier
            self._counted = True
        # Count only now, when every rank can uncount the start and can see whether another rank is gone.
        self._world.barrier()
        if self._world.is_main:
            with self._lock:
                if self._counted:
                    self._write(earlier + 1)

    def join(self, world: World) -> None:
        """Take part in a start that is counted already, as a rank of a world whose ranks have come or gone. Collective.

        Args:
            world: in which this rank may have another number than before.
        """
        with self._lock:
            self._locks.release()
            self._locks, self._world = RankLocks(self._locks.run_dir, world.rank, world.world_size), world
        world.barrier()  # nobody holds the lock of another
        with self._lock:
            self._locks.acquire()
            if not self._counted:
                self._step, counted = self._read()
                self._earlier, self._counted = max(counted - 1, 0), True
                before_exit.append(self.on_stop_signal)

    def uncount(self) -> None:
        """Take this start out of the count: it ends in an orderly way."""
        with self._lock:
            if self._counted:
                self._counted = False
                self._write(self._earlier)

    def on_stop_signal(self) -> None:
        """Uncount this start, unless another rank is gone already.

        After a crash, which counts, a launcher stops the surviving ranks with the same signal. If all ranks are
        stopped, the first one to leave still finds the others.
        """
        with self._lock:
            if not self._counted or not self._locks.all_held():
                return
            if not self._world.is_main:
                # Write nothing before rank 0 has counted this start, nor after a later start has been counted.
                deadline = time.monotonic() + COUNTED_SECONDS
                while not self._is_written():
                    if time.monotonic() > deadline:
                        return
                    time.sleep(0.02)
            self.uncount()

    def __enter__(self) -> StartCounter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        orderly = kind is None or issubclass(kind, UserError | NoProgressError | KeyboardInterrupt)
        # After a finished or stopped run rank 0 uncounts alone: it may still crash while it shuts down. After bad
        # input any rank does: rank 0 may be killed before it can.
        if orderly and (self._world.is_main or (kind is not None and self._is_written())):
            self.uncount()
        with self._lock:
            self._counted = False  # ignore later stop signals
        self._locks.release()

    def _is_written(self) -> bool:
        return self._read() == (self._step, self._earlier + 1)

    def _read(self) -> tuple[int, int]:
        """Step of the newest checkpoint and number of starts, as they were written last; zeros if unreadable."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return int(found["step"]), int(found["starts"])
        except (OSError, ValueError, TypeError, KeyError):
            return 0, 0

    def _write(self, starts: int) -> None:
        with suppress(OSError):  # a full disk must not end the run
            write_whole(self._file, json.dumps({"step": self._step, "starts": starts}).encode())


def _newest_step(storages: Sequence[Storage]) -> int:
    newest = 0
    for storage in storages:
        try:
            newest = max((newest, *(step for step, _ in step_directories(storage))))
        except Exception as error:  # clients of object stores raise errors of their own kinds
            raise UserError(f"checkpoints in {storage} cannot be listed: {reason_of(error)}") from None
    return newest


class RankLocks:
    """File locks that show which ranks are alive: rank ``n`` locks byte ``n`` of a file until it ends.

    On file systems without locks every rank counts as alive.
    """

    def __init__(self, run_dir: Path, rank: int, world_size: int):
        self.run_dir, self._path = run_dir, run_dir / LOCKS_FILE
        self._rank, self._world_size = rank, world_size
        self._file: int | None = None

    def acquire(self) -> None:
        """Lock this rank's byte."""
        with suppress(OSError):
            # Stays open until ``release``: closing any descriptor of the file would drop the process's locks.
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._rank)

    def all_held(self) -> bool:
        """Whether all other ranks are alive. Call it after all ranks have acquired their locks."""
        return not any(self._is_free(rank) for rank in range(self._world_size) if rank != self._rank)

    def release(self) -> None:
        """Release this rank's lock: what its process still does no longer matters to its peers."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _is_free(self, rank: int) -> bool:
        if self._file is None:
            return False
        try:
            # Shared: two ranks that test the same byte at once must not take each other for its owner.
            fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, rank)
        except OSError:
            return False
        return True
