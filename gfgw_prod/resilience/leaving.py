"""How a process ends when its work is done. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from gfgw_prod.resilience.exit_codes import CRASHED


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
