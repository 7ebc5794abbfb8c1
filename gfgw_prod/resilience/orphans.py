"""A rank must not outlive its launcher: nobody would restart it, and it would write beside the one that takes over."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

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
