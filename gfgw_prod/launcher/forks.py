"""Ranks as forks of a process that has imported all they need (``process/fork_server.py``)."""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from gfgw_prod.process.fork_server import READY, SOCKET
from gfgw_prod.process.leaving import AGENT_PID
from gfgw_prod.process.signals import before_exit

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
ANSWER_SECONDS = 60.0  # a fork takes milliseconds, but the server may be stopped
ROOM = "x" * 4096  # for the variables that a rank has and the server has not


class Forked(subprocess.Popen[bytes]):
    """A child that another process has forked for this one."""

    def __init__(self, pid: int, command: Sequence[str]):
        self._forked = pid
        super().__init__(command)

    def _execute_child(self, *_: object) -> None:
        self.pid, self._child_created = self._forked, True


class ForkServer:
    """The fork server of this node, for ranks with one command. Where it cannot work, ``fork`` returns ``None``."""

    def __init__(self, command: Sequence[str]):
        self.command = [*command]
        self._ready = False
        self._temporary = tempfile.TemporaryDirectory()  # torch makes another one in it that a killed server leaves
        self._process, self._socket = self._started()
        before_exit.append(self.close)

    def wait(self) -> None:
        """Wait until all is imported; start again if the server was killed since."""
        if self._ready and self._process.poll() is not None:
            self._ready = False
            self._process, self._socket = self._started()
        while not self._ready and self._process.poll() is None:
            if select.select([self._socket], [], [], 1.0)[0]:
                self._ready = self._answer() == READY

    def fork(self, command: Sequence[str], environment: Mapping[str, str]) -> Forked | None:
        """Fork a rank; ``None`` if this server has none for the command."""
        if not self._ready or [*command] != self.command:
            return None
        with suppress(OSError), adopting():
            self._socket.sendall(json.dumps(dict(environment)).encode() + b"\n")
            if answer := self._answer():
                return Forked(int(answer), command)
        self._process.kill()
        return None

    def _started(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        ours.settimeout(ANSWER_SECONDS)
        with theirs:
            number = theirs.fileno()
            own = {SOCKET: str(number), AGENT_PID: str(os.getpid()), "TMPDIR": self._temporary.name, "GFGW_ROOM": ROOM}
            environment = {**os.environ, **own}
            return subprocess.Popen(self.command, env=environment, pass_fds=[number], start_new_session=True), ours

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.wait()
        self._temporary.cleanup()

    def _answer(self) -> bytes:
        with suppress(OSError):
            return self._socket.recv(64)
        return b""


def fork_server_for(launcher_arguments: Sequence[str]) -> ForkServer | None:
    """Start the server for the ranks that a launcher with these arguments starts, if they are this program's."""
    words = [*launcher_arguments]
    for first in range(len(words)) if sys.platform == "linux" else ():
        if words[first : first + 2] == ["-m", "gfgw_prod"]:
            return ForkServer([os.getenv("PYTHON_EXEC", sys.executable), "-u", *words[first:]])
    return None


@contextmanager
def adopting() -> Iterator[None]:
    """Context in which this process is a subreaper: orphaned descendants become its children."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)
