"""Everything that the launcher changes in torchrun, and why."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing import api as torch_api
from torch.distributed.elastic.rendezvous import api as rendezvous_api

from gfgw_prod.process.signals import IGNORED, STOP

_kept: list[socket.socket] = []


def keep_ports() -> None:
    """From now on torch's rendezvous keeps the port that it takes."""
    if sys.platform == "linux":  # elsewhere two sockets cannot have one port so
        rendezvous_api.get_free_port = keep_port


def keep_port() -> int:
    """A port for the next round, of those that the system gives away; the one of the last round goes.

    torch takes one, and gives it back. Rank 0 listens there some seconds later, after its imports, and until then any
    other rank's connection may get it. A port that is bound is given to nobody who does not ask for it by number, and
    with SO_REUSEADDR, which TCPStore sets too, whoever does gets it as long as nobody listens.

    Raises:
        OSError: if there is none.
    """
    kept = _bound()
    while _kept:
        _kept.pop().close()
    _kept.append(kept)
    return int(kept.getsockname()[1])


def _bound() -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # it is there, and switched off
            return _bound_to(socket.AF_INET6, "::")
    return _bound_to(socket.AF_INET, "")


def _bound_to(family: socket.AddressFamily, address: str) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind((address, 0))
    except OSError:
        bound.close()
        raise
    return bound


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


raise_now = torch_api._terminate_process_handler


@contextmanager
def waiting() -> Iterator[None]:
    """Within, a stop signal is only noted; at the end, and from then on, it raises SignalException.

    While workers are spawned: torch installs its handler right before that. Raised in between, the exception would take
    the list of those that were spawned with it, and nobody would end them. To block signals does not do: workers would
    inherit that. While workers are looked at: raised between two instructions of ``Popen.poll``, it would leave its
    lock held, and whoever waits for that worker would wait for ever.
    """
    noted: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if signum not in IGNORED:
            noted.append(signum)

    torch_api._terminate_process_handler = note
    try:
        for stop in STOP:  # torch leaves out SIGUSR1, with which schedulers announce the others
            signal.signal(stop, note)
        yield
    finally:
        torch_api._terminate_process_handler = raise_now
        for stop in STOP:
            signal.signal(stop, signal.SIG_IGN if stop in IGNORED else raise_now)
        if noted:  # also in the place of an error: who was told to stop waits for no rendezvous to come back
            received = signal.Signals(noted[0])
            raise SignalException(f"got {received.name}", sigval=received)


class NoFiles(LogsSpecs):
    """No log directory. torch's default makes one, which an agent that is killed or told to stop leaves behind.

    torch can do without when it is given the null device, but then has threads read from it, and a signal that arrives
    while it waits for one of these is lost.
    """

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Output of each local rank: none of it is redirected or copied."""
        unchanged = dict.fromkeys(range(len(envs)), "")
        return LogsDest(stdouts=unchanged, stderrs=unchanged, error_files=dict.fromkeys(unchanged, os.devnull))

    @property
    def root_log_dir(self) -> str:
        """No directory."""
        return os.devnull
