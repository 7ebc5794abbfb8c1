"""Import what programs need once, and fork a process for each: ``python -m MODULE`` without seconds of imports.

``python -m tests.process.fork_server SOCKET MODULE...`` imports the modules and forks for ``forks.py``, its parent. A
fork is the parent's own child; it sets up what a shell would, runs its program from the first line, and ends as an
interpreter does: exit codes, tracebacks and signals are those of a real process. Fewer modules make a fork
faster; a fork imports those it lacks. The fork server that a launcher starts for its ranks is a fork, too.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_BYTES = 4 << 30  # of a fork's data: more must not exhaust the machine
PACKAGE = "gfgw_prod"
LAUNCHER, SOCKET = f"{PACKAGE}.launcher", "GFGW_FORK_SERVER"
OWN = Path(__file__).parents[2]  # where the package is that this process has imported


def serve(parent: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork on requests until the parent ends. Returns in each fork: its request and standard streams."""
    while True:
        request, streams = received(parent)
        process = fork()
        if process is None:
            return request, streams
        for stream in streams:
            os.close(stream)
        parent.sendall(process.to_bytes(4, "little"))


def send(to: socket.socket, request: dict[str, Any], files: Sequence[int]) -> None:
    """Send a request with open files."""
    message = json.dumps(request).encode()
    socket.send_fds(to, [len(message).to_bytes(8, "little")], files)
    to.sendall(message)


def received(parent: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next request and its open files. Without one, this process ends."""
    message, files, _, _ = socket.recv_fds(parent, 8, 4)
    if not message:
        os._exit(0)
    return json.loads(parent.recv(int.from_bytes(message, "little"), socket.MSG_WAITALL)), files


def fork() -> int | None:
    """Fork a process that becomes the parent's child, as the one between them ends. ``None`` in that process."""
    reads, writes = os.pipe()
    if (between := os.fork()) == 0:
        own = os.getpid()
        if child := os.fork():
            os.write(writes, child.to_bytes(4, "little"))
            os._exit(0)
        while os.getppid() == own:
            time.sleep(0.0002)
        os.close(reads)
        os.close(writes)
        return None
    process = int.from_bytes(os.read(reads, 4), "little")
    os.waitpid(between, 0)
    os.close(reads)
    os.close(writes)
    return process


def become(request: dict[str, Any], streams: list[int]) -> None:
    """Set up what a request names: directory, arguments, environment, import path, and standard streams if given."""
    os.chdir(request["directory"])
    sys.argv[1:] = request["arguments"]
    os.environ.clear()
    os.environ.update(request["environment"])
    if added := os.environ.get("PYTHONPATH"):
        sys.path[:0] = added.split(os.pathsep)
        if next((place for place in map(Path, sys.path) if (place / PACKAGE).is_dir()), OWN) != OWN:
            for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
                del sys.modules[name]  # it is another one
        for custom in (place for each in added.split(os.pathsep) if (place := Path(each, "sitecustomize.py")).exists()):
            if getattr(sys.modules.get(custom.stem), "__file__", None) != str(custom):
                sys.modules.pop(custom.stem, None)
                importlib.import_module(custom.stem)  # as an interpreter does first of all
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))[: len(streams)]):
        os.dup2(streams[number], number)
        os.close(streams[number])
        if number in request["closed"]:
            os.close(number)
            setattr(sys, name, None)  # as an interpreter does if it starts with the stream closed
        else:
            old = getattr(sys, name)
            how = {"encoding": old.encoding, "errors": old.errors, "buffering": 1 if name == "stderr" else -1}
            setattr(sys, name, os.fdopen(number, mode, closefd=False, **how))  # it may be seekable, and the old one not
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))


def fork_for_launcher() -> tuple[dict[str, Any], list[int]] | None:
    """In a launcher, fork a server for the programs of this repository that it starts. Returns in each: its request."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        request, files = serve(theirs)
        theirs.close()
        if request["session"]:
            os.setsid()
        if files:  # it is the server that ranks are forked from
            (request["environment"][SOCKET],) = map(str, files)
        return request, []
    theirs.close()
    start = subprocess.Popen._execute_child  # type: ignore[attr-defined]

    def fork_ours(process: Any, command: Any, *how: Any) -> None:
        """Start a program; have one of ours with this process's streams be forked."""
        pass_fds, directory, environment, streams, session = how[3], how[4], how[5], how[9:15], how[-2]
        module = next(iter(command[3:]), "") if [*command[:3]] == [sys.executable, "-u", "-m"] else ""
        if {*streams} != {-1} or not module.startswith((PACKAGE, "tests.")):
            start(process, command, *how)
            return
        request = {"module": module, "arguments": command[4:], "directory": directory or ".", "session": session}
        with sys.modules[f"{LAUNCHER}.forks"].adopting():
            send(ours, {**request, "environment": {**(environment or os.environ)}, "closed": []}, pass_fds)
            process.pid = int.from_bytes(ours.recv(4), "little")
        process._child_created = True

    subprocess.Popen._execute_child = fork_ours  # type: ignore[attr-defined]
    return None


def leave(code: Any) -> None:
    """Exit like the interpreter, without tearing down modules, which takes ten times as long as a small command."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            code = 120
    os._exit(code)


if __name__ == "__main__":
    requests = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork of a process with threads would lose them"
    gc.freeze()  # no collection writes to shared pages, which would copy them
    requested, inherited = serve(requests)
    requests.close()
    become(requested, inherited)
    if requested["module"] == LAUNCHER and (of_launcher := fork_for_launcher()) is not None:
        requested, _ = of_launcher
        become(*of_launcher)
        sys.stdout.reconfigure(line_buffering=True)  # nearly as with -u
    try:
        runpy.run_module(requested["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:  # any other exception gets the interpreter's own traceback
        leave(end.code)
