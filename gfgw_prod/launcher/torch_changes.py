"""What the launcher changes in torchrun itself: the port of a round, how workers start, stop signals, log files."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing import api as torch_api
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from torch.distributed.elastic.rendezvous import api as rendezvous_api

from gfgw_prod.launcher.forks import ForkServer
from gfgw_prod.process.signals import IGNORED, STOP, set_stop_handlers

_reserved: list[socket.socket] = []  # the port of the present round
_raise_signal = torch_api._terminate_process_handler  # torch's handler: raises SignalException


def keep_ports() -> None:
    """Make torch's rendezvous hold the port that it picks until rank 0 listens there."""
    if sys.platform == "linux":  # elsewhere two sockets cannot share a port like this
        rendezvous_api.get_free_port = reserve_port


def reserve_port() -> int:
    """Reserve a free port for the next round of ranks, and release that of the last round.

    torch picks a port and releases it at once. Rank 0 listens there seconds later, after its imports, and until then
    the system may give the port to any other connection. The system gives a bound port only to those who ask for it by
    number, and they get it if they set SO_REUSEADDR, as TCPStore does, and nobody listens there.

    Raises:
        OSError: if there is none.
    """
    reserved = _bind_any_port()
    while _reserved:
        _reserved.pop().close()
    _reserved.append(reserved)
    return int(reserved.getsockname()[1])


def _bind_any_port() -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # IPv6 can be compiled in and switched off
            return _bind(socket.AF_INET6, "::")
    return _bind(socket.AF_INET, "")


def _bind(family: socket.AddressFamily, address: str) -> socket.socket:
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


@contextmanager
def stop_signals_deferred() -> Iterator[None]:
    """Context in which a stop signal is only noted; SignalException is raised at its end, and at once after that.

    For operations that an exception must not break off:

    - Spawning workers. torch installs its raising handler right before it. An exception in between would lose the list
      of the workers spawned so far, and nobody would end them. (Blocking the signals is no way: workers inherit that.)
    - Looking at workers. An exception within ``Popen.poll`` would leave its lock held, and whoever waits for that
      worker would wait forever.
    """
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if signum not in IGNORED:
            received.append(signum)

    torch_api._terminate_process_handler = note
    try:
        set_stop_handlers(dict.fromkeys(STOP, note))  # torch leaves out SIGUSR1, which schedulers send as a warning
        yield
    finally:
        torch_api._terminate_process_handler = _raise_signal
        for stop in STOP:
            signal.signal(stop, signal.SIG_IGN if stop in IGNORED else _raise_signal)
        if received:  # replaces an error, too: a launcher that must stop does not wait for a lost rendezvous
            first = signal.Signals(received[0])
            raise SignalException(f"got {first.name}", sigval=first)


def fork_ranks(server: ForkServer) -> None:
    """Have torch's agent take its workers from the fork server, if that can serve, and else start them anew."""

    def popen(handler: SubprocessHandler, command: tuple[str, ...], environment: dict[str, str]) -> Any:
        redirected = handler._stdout or handler._stderr  # a fork has the streams of the server
        return (None if redirected else server.fork(command, environment)) or start_anew(handler, command, environment)

    start_anew = SubprocessHandler._popen
    SubprocessHandler._popen = popen  # type: ignore[method-assign, assignment]


class NoLogFiles(LogsSpecs):
    """Pass the workers' output through, and make no log directory.

    torch's default makes one, which stays behind when an agent is killed or signalled. Given the null device it makes
    none, but reads from it in threads, and a signal that arrives while the agent waits for one of these is lost.
    """

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Destinations of each local rank: nothing is redirected or copied."""
        unchanged = dict.fromkeys(range(len(envs)), "")
        return LogsDest(stdouts=unchanged, stderrs=unchanged, error_files=dict.fromkeys(unchanged, os.devnull))

    @property
    def root_log_dir(self) -> str:
        """No directory."""
        return os.devnull
