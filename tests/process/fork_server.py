"""Import the package once, and fork a child for each case: the command without its two seconds of imports.

``python fork_server.py CASES MODULE...`` imports the modules and reads cases from a JSON file, which name the files for
their output and exit code. A child sets up what a shell would, runs ``python -m gfgw_prod`` from its first line, and
ends as an interpreter does: exit codes, tracebacks and signals are those of a real process. Fewer modules make a fork
faster; a child imports those it lacks.
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

MOST_BYTES = 4 << 30  # of a child's data: more must not exhaust the machine
TIMED_OUT = "no end"


def serve(cases: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Run every case. Returns ``None`` in the server once all have ended, and its case in each child."""
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
    """Set the directory, arguments, environment and standard streams of a case."""
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
            setattr(sys, name, None)  # as an interpreter does if it starts with the stream closed
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))


def leave(code: Any) -> None:
    """Exit like the interpreter, without tearing down modules, which takes ten times as long as the case."""
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
    assert len(os.listdir("/proc/self/task")) == 1, "a fork of a process with threads would lose them"
    gc.freeze()  # no collection writes to shared pages, which would copy them
    if (mine := serve(json.loads(Path(sys.argv[1]).read_text()))) is not None:
        become(mine)
        try:
            runpy.run_module("gfgw_prod", run_name="__main__", alter_sys=True)
        except SystemExit as end:  # any other exception gets the interpreter's own traceback
            leave(end.code)
