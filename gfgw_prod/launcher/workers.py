"""Worker processes: end them, find those that do not end by themselves, start one again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from gfgw_prod.process import save_in_flight
from gfgw_prod.process.exit_codes import FINISHED, PREEMPTED
from gfgw_prod.process.proc_stat import stat_fields

LEAVE_SECONDS = 3.0  # for the peers of a crashed rank: more than they need, unless they are stuck in C
SAVE_SECONDS = 30.0  # for those that save; they give up within 20 s
# A worker that is stopped (SIGSTOP) is killed. A scheduler that resumes a whole job may resume the launcher first.
STOPPED_SECONDS = 1.0
STOPPED, WAITS_FOR_A_DISK = "T", "D"  # states of a process
NOT_COUNTED = ("", "0 0 0\n")  # what kernels say that do not count how long a process runs


def end_workers(handlers: Sequence[SubprocessHandler], death_sig: signal.Signals, timeout: float) -> None:
    """Signal the workers that run, and kill those that are left after the timeout.

    After a crash, kill those that do not leave at once and are not saving.
    """
    running = [handler for handler in handlers if handler.proc.poll() is None]
    crashed = any(handler.proc.returncode not in (None, FINISHED, PREEMPTED) for handler in handlers)
    for handler in running:
        handler.close(death_sig)
    began = time.monotonic()
    while any(handler.proc.poll() is None for handler in running):
        passed = time.monotonic() - began
        if passed > timeout or (crashed and passed > LEAVE_SECONDS and not save_in_flight.is_any_saving()):
            for handler in running:
                handler.proc.kill()
                handler.proc.wait()
        time.sleep(0.01)


def start_again(context: SubprocessContext, local: int, environment: Mapping[str, str]) -> int:
    """Start a worker in the place of one that has ended; return its process id.

    Args:
        local: local rank of the worker.
        environment: variables that it gets beside those of the one before.
    """
    handler = context.subprocess_handlers[local]
    command = context.entrypoint, *context.args[local]
    handler.proc = handler._popen(command, {**os.environ, **context.envs[local], **environment})
    return int(handler.proc.pid)


class IdleWorkers:
    """Finds workers that do not run: stopped ones, and those stuck in C while their peers form a group anew.

    Those that wait for a disk are left alone: they go on once it answers, and could not be killed before.

    Attributes:
        building: processes that replace lost ones, and may wait for a compiler or a disk until they are admitted.
    """

    def __init__(self) -> None:
        self.building: set[int] = set()
        self._looks: Counter[int] = Counter()  # in a row, at which a process had no right to be idle, and was
        self._ran: dict[int, str] = {}  # how long each had run at the last look

    def kill(
        self,
        workers: Sequence[subprocess.Popen[bytes]],
        interval: float,
        *,
        forming: bool,
        joining: Collection[int] = (),
    ) -> dict[int, str]:
        """Kill those that are idle for too long. Returns what they did, by process id.

        Args:
            interval: seconds between two calls.
            forming: whether the ranks of a generation have not met yet. Else a worker may wait for others in C.
            joining: processes that the others have not admitted yet.
        """
        killed = {}
        may_wait = not forming or save_in_flight.is_any_saving()
        if not forming:
            self.building.intersection_update(joining)
        for worker in workers:
            before, ran = self._ran.get(worker.pid), _time_run(worker.pid)
            self._ran[worker.pid] = ran
            state = _state(worker.pid)
            stopped = state == STOPPED
            waits = may_wait or state == WAITS_FOR_A_DISK or worker.pid in self.building or ran in NOT_COUNTED
            idle = before == ran and (stopped or not waits)
            self._looks[worker.pid] = self._looks[worker.pid] + 1 if idle else 0
            if self._looks[worker.pid] * interval >= (STOPPED_SECONDS if stopped else LEAVE_SECONDS):
                worker.kill()
                killed[worker.pid] = (
                    "was stopped (SIGSTOP)" if stopped else "is stuck while the ranks of a new generation meet"
                )
        return killed


def is_stopped(process: int) -> bool:
    """Whether a process is stopped, by SIGSTOP or a scheduler; not by a debugger."""
    return _state(process) == STOPPED


def _state(process: int) -> str:
    """The state of a process's first thread, as proc(5) abbreviates it; empty if that cannot be known."""
    with suppress(OSError):  # the process has ended, or this system has no /proc
        return stat_fields(process)[0]
    return ""


def _time_run(process: int) -> str:
    """What the kernel has counted for the first thread of a process, which runs each time it is resumed."""
    with suppress(OSError):
        return Path(f"/proc/{process}/schedstat").read_text(encoding="utf-8")
    return ""
