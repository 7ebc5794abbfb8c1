"""How a process ends when its work is done. Imports nothing heavy."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from gfgw_prod.process.exit_codes import CRASHED


def code_of(run: Callable[[], int]) -> int:
    """The exit code that ``run`` returns; that of a crash, with its traceback, if it raises."""
    try:
        return run()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:  # torch's CheckpointException is no Exception
        sys.excepthook(*sys.exc_info())
        return CRASHED


def end(code: int) -> NoReturn:
    """Ends this process whatever its threads are doing, and runs no exit handlers.

    Interpreters before 3.14 unwind the threads that are left at their end. One that is inside torch's C++ code at that
    moment makes this an abort, and the exit code that of SIGABRT.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more: the exit code tells enough
            stream.flush()
    os._exit(code)


AGENT_PID = "GFGW_AGENT_PID"  # the elastic launcher sets it for its ranks


PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_agent() -> None:
    """Has the kernel send SIGKILL to this rank when the agent that started it ends; Linux only. No rank, no effect.

    The agent may have ended before this call, while the interpreter was loading. Then no signal would come, but this
    process has another parent by now. torchrun does not tell its process id, and is missed only from here on.
    """
    if AGENT_PID not in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    # Taken out: what a rank starts has the rank for its parent.
    agent = os.environ.pop(AGENT_PID, str(os.getppid()))
    if sys.platform == "linux":
        # The signal comes when the parent's thread ends that started this process: the agent starts ranks from its
        # main thread, which is the last to end.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if str(os.getppid()) != agent:
        os.kill(os.getpid(), signal.SIGKILL)
