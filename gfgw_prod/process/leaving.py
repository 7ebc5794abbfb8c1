"""How a process ends: with its exit code, and together with the process that started it. Imports nothing heavy."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from gfgw_prod.process.exit_codes import CRASHED

AGENT_PID = "GFGW_AGENT_PID"  # set by the elastic launcher for its ranks
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def exit_code_of(run: Callable[[], int]) -> int:
    """Call ``run`` and return its exit code; if it raises, print the traceback and return the code of a crash."""
    try:
        return run()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:  # torch's CheckpointException is no Exception
        sys.excepthook(*sys.exc_info())
        return CRASHED


def exit_at_once(code: int) -> NoReturn:
    """End this process without waiting for its threads and without exit handlers.

    Interpreters before 3.14 unwind daemon threads when they end. If one is inside torch's C++ code at that moment, the
    process aborts, and its exit code is that of SIGABRT.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more: the exit code says enough
            stream.flush()
    os._exit(code)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux only), and end now if the parent has ended already.

    The signal comes when the *thread* that started this process ends. Start children from the main thread.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_agent() -> None:
    """Make a rank die with the agent that started it; without effect in a process that is no rank.

    Our launcher names its process id, so that a rank whose agent ended while the rank's interpreter was loading ends
    too. torchrun does not name its own: if it ends that early, the rank lives on.
    """
    # Removed from the environment: the parent of what a rank starts is the rank.
    agent = os.environ.pop(AGENT_PID, None)
    if agent is not None or "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent(os.getppid() if agent is None else int(agent))
