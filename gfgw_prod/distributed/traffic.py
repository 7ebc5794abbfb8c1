"""What collectives cost: bytes and seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Traffic:
    """Bytes that this rank has given to collectives so far, and seconds that its training thread has spent in them.

    Ranks meet in collectives, so most of that time is waiting for slower ranks. It is host time, and says nothing on a
    GPU, where collectives are only enqueued.
    """

    bytes: int = 0
    seconds: float = 0.0

    @contextmanager
    def waiting(self, given: Tensor | None = None) -> Iterator[None]:
        """Time a collective of the training thread; count the bytes ``given`` to it."""
        self.bytes += 0 if given is None else given.nbytes
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started
