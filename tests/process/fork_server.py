"""A process that has imported the package, and forks a child for each case: the command without its 1.8 s of imports.

``python fork_server.py CASES MODULE...`` imports the modules and takes cases from a file of JSON. Each says where its
outputs and its exit code go. A child sets up what a shell would, runs
``python -m gfgw_prod`` from its first line on and ends as an interpreter does: exit codes, tracebacks and signals are
those of a real process. The fewer modules, the quicker a fork; a child imports what it lacks.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

MOST_BYTES = 4 << 30  # of a child's data: what asks for more must not take the machine along
TIMED_OUT = "no end"


def serve(cases: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Runs every case; returns ``None`` in the server once all have ended, and in a child the case it is to become."""
    for case in cases:
        child = os.fork()
        if child == 0:
            return case
        deadline = time.monotonic() + case["limit_seconds"]
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                break
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        Path(case["code"]).write_text(TIMED_OUT if time.monotonic() > deadline else str(code))
    return None


def become(case: dict[str, Any]) -> None:
    """Directory, arguments, environment and standard streams of a case."""
    os.chdir(case["directory"])
    sys.argv[1:] = case["arguments"]
    os.environ.clear()
    os.environ.update(case["environment"])
    for number, place in ((0, os.devnull), (1, case["stdout"]), (2, case["stderr"])):
        stream = os.open(place, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(stream, number)
        os.close(stream)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if number in case["closed"]:
            os.close(number)
            setattr(sys, name, None)  # as an interpreter does that finds it closed
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))


def leave(code: Any) -> None:
    """Ends as the interpreter does, but for taking all modules apart, which takes ten times as long as the case."""
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
    for name in sys.argv[2:]:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a child of a process with threads is no copy of it"
    gc.freeze()  # pages that no child writes are never copied
    if (mine := serve(json.loads(Path(sys.argv[1]).read_text()))) is not None:
        become(mine)
        try:
            runpy.run_module("gfgw_prod", run_name="__main__", alter_sys=True)
        except SystemExit as end:  # anything else gets the interpreter's own traceback
            leave(end.code)
