"""Ranks wait together for threads of theirs, and let each other know that they do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch

from gfgw_prod.distributed.world import World
from gfgw_prod.process.watchdog import watch

SLOWEST = timedelta(hours=6)  # a write on any rank, before the others take it for lost
WAIT_SECONDS = 1.0  # for a thread, before all ranks let each other know that they still wait
ENDED, WAITS, ENOUGH, LEAVES, LATE = range(5)  # what a rank says; the largest counts


def wait_together(
    world: World,
    thread: threading.Thread | None,
    what: str,
    *,
    leaves: Callable[[], bool] = lambda: False,
    enough: Callable[[], bool] = lambda: False,
    limit: timedelta = SLOWEST,
) -> bool:
    """Waits for this rank's thread and every other's, for hours if need be: a round shows that all are there.

    Args:
        what: is waited for, in words.
        leaves: whether this rank is about to leave with an error, and the others' threads may wait for its own.
        enough: whether the threads can be left to themselves.

    Returns:
        Whether this rank's thread has ended.

    Raises:
        TimeoutError: on all ranks, if a thread has not ended within the limit.
    """
    deadline = time.monotonic() + limit.total_seconds()
    verdict = WAITS
    while verdict == WAITS:
        if thread is not None:
            thread.join(min(WAIT_SECONDS, limit.total_seconds()))
        watch.progress(f"waiting for {what}")
        mine = ENDED
        if leaves():
            mine = LEAVES
        elif enough():
            mine = ENOUGH
        elif thread is not None and thread.is_alive():
            mine = WAITS if time.monotonic() < deadline else LATE
        verdict = int(world.all_reduce_max(torch.tensor([mine], device=world.device)))
    if verdict == LATE:
        raise TimeoutError(f"{what} has not ended within {limit}")
    if thread is not None and verdict != ENOUGH:
        thread.join()
    return thread is None or not thread.is_alive()
