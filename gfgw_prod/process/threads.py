"""Wait for threads of this process."""

from __future__ import annotations

import math
import threading
import time

POLL_SECONDS = 0.05


def join_awake(thread: threading.Thread, limit_seconds: float = math.inf) -> None:
    """Wait for a thread to end, or for the limit, without sleeping for long.

    While ranks come and go, the launcher kills a rank whose main thread does not run for seconds.
    """
    deadline = time.monotonic() + limit_seconds
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(POLL_SECONDS)
