"""Let all ranks wait together for background threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch

from gfgw_prod.distributed.world import World
from gfgw_prod.process.watchdog import watch

SLOWEST = timedelta(hours=6)  # the longest write of any rank
POLL_SECONDS = 1.0  # between collectives in which the ranks exchange their states
DONE, RUNNING, ENOUGH, FAILING, LATE = range(5)  # states of a rank; all act on the largest of them


def wait_together(
    world: World,
    thread: threading.Thread | None,
    what: str,
    *,
    failing: Callable[[], bool] = lambda: False,
    enough: Callable[[], bool] = lambda: False,
    limit: timedelta = SLOWEST,
) -> bool:
    """Wait for the threads of all ranks. Every second a collective shows that all ranks are alive. Collective.

    Args:
        failing: whether this rank is about to raise an error, so that the others must not wait for it.
        enough: whether to stop waiting, and leave the threads running.

    Returns:
        Whether this rank's thread has ended.

    Raises:
        TimeoutError: on all ranks, if a thread is still running after the limit.
    """
    deadline = time.monotonic() + limit.total_seconds()
    verdict = RUNNING
    while verdict == RUNNING:
        if thread is not None:
            thread.join(min(POLL_SECONDS, limit.total_seconds()))
        watch.progress(f"waiting for {what}")
        mine = DONE
        if failing():
            mine = FAILING
        elif enough():
            mine = ENOUGH
        elif thread is not None and thread.is_alive():
            mine = RUNNING if time.monotonic() < deadline else LATE
        verdict = int(world.all_reduce_max(torch.tensor([mine], device=world.device)))
        world.require_peers()
    if verdict == LATE:
        raise TimeoutError(f"{what} has not ended within {limit}")
    if thread is not None and verdict != ENOUGH:
        thread.join()
    return thread is None or not thread.is_alive()
