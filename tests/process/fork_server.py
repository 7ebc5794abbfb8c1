"""Import what programs need once, and fork a process for each: ``python -m MODULE`` without seconds of imports.

``python -m tests.process.fork_server SOCKET MODULE...`` imports the modules and forks for ``forks.py``, its parent. A
fork is the parent's own child; it sets up what a shell would, runs its program from the first line, and ends as an
interpreter does: exit codes, tracebacks and signals are those of a real process. Fewer modules make a fork
faster; a fork imports those it lacks.
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
import sys
import threading
import time
from typing import Any

MOST_BYTES = 4 << 30  # of a fork's data: more must not exhaust the machine
PACKAGE = "gfgw_prod"


def serve(parent: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork on requests until the parent ends. Returns in each fork: its request and standard streams."""
    while True:
        message, streams, _, _ = socket.recv_fds(parent, 8, 3)
        if not message:
            os._exit(0)
        request = parent.recv(int.from_bytes(message, "little"), socket.MSG_WAITALL)
        process = fork()
        if process is None:
            return json.loads(request), streams
        for stream in streams:
            os.close(stream)
        parent.sendall(process.to_bytes(4, "little"))


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
    """Set the directory, arguments, environment, import path and standard streams of a request."""
    os.chdir(request["directory"])
    sys.argv[1:] = request["arguments"]
    os.environ.clear()
    os.environ.update(request["environment"])
    if added := os.environ.get("PYTHONPATH"):
        sys.path[:0] = added.split(os.pathsep)
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]  # it is another one
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
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
    requested = serve(requests)
    requests.close()
    become(*requested)
    try:
        runpy.run_module(requested[0]["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:  # any other exception gets the interpreter's own traceback
        leave(end.code)
