"""Shared memory, which semaphores need: threads of torchdata and decoding processes use them."""

from __future__ import annotations

import multiprocessing

from gfgw_prod.process.exit_codes import reason_of


def shared_memory_problem() -> str | None:
    """Why no semaphore can be made, as where a sandbox has no writable /dev/shm; ``None`` if one can."""
    try:
        multiprocessing.get_context("fork").Lock()  # removed at once, without a helper process as under "spawn"
    except OSError as error:
        return f"shared memory cannot be used (/dev/shm: {reason_of(error)})"
    return None
