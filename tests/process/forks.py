"""Programs as forks of a process with their imports done (``fork_server.py``), for tests that are not of a start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gfgw_prod.launcher.forks import ROOM, adopting

from .fork_server import send

ROOT = Path(__file__).parents[2]
ONE_AT_A_TIME = threading.Lock()  # this process adopts as a whole
# What a run imports until its first step. DDP imports torch._dynamo, which takes a second.
RUNS = (
    *("torch._dynamo", "torch.utils.serialization.config", "torch.utils.tensorboard", "PIL.GifImagePlugin"),
    *("PIL.PngImagePlugin", "torch.distributed.run", "gfgw_prod.commands.train", "gfgw_prod.training.trainer"),
)


class Forked(subprocess.Popen[str]):
    """``python -m MODULE`` with arguments; a child of this process, forked by a server.

    Args:
        closed: standard streams to close, by number.
    """

    def __init__(self, server: ForkServer, command: Sequence[str], closed: Sequence[int] = (), **how: Any):
        self._server, self._closed = server, closed
        super().__init__([*command], text=True, **how)

    def _execute_child(self, command: Any, executable: Any, *rest: Any) -> None:
        directory, environment = rest[3:5]
        stdin, _, _, stdout, _, stderr = streams = rest[8:14]
        request = {
            "module": command[2],
            "arguments": command[3:],
            "directory": os.path.abspath(directory or "."),
            "environment": dict(environment),
            "closed": self._closed,
        }
        self.pid = self._server.fork(request, [stdin, stdout, stderr])
        self._child_created = True
        self._close_pipe_fds(*streams)  # type: ignore[attr-defined]


class ForkServer:
    """A process that has imported some modules, for as long as this object exists.

    Args:
        environment: of the server; what an interpreter or torch reads when it starts cannot differ in a fork.
        within: command that starts the server, to which its own is added.
    """

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str], within: Sequence[str] = ()):
        self._socket, theirs = socket.socketpair()
        command = [*within, sys.executable, "-m", f"{__package__}.fork_server", str(theirs.fileno()), *modules]
        with theirs:
            room = {**environment, "GFGW_ROOM": ROOM}  # where a rank shows its environment
            self._process = subprocess.Popen(command, cwd=ROOT, env=room, pass_fds=[theirs.fileno()])

    def fork(self, request: dict[str, Any], streams: Sequence[int]) -> int:
        """Fork a process with these standard streams. Returns its id."""
        with ONE_AT_A_TIME, adopting():
            send(self._socket, request, streams)
            answer = self._socket.recv(4)
        assert answer, "the fork server has ended"
        process = int.from_bytes(answer, "little")
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # raises if it is no child of this process
        return process

    def close(self) -> None:
        """End the server; its forks live on."""
        self._socket.close()
        self._process.wait()
