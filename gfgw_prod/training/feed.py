"""Images for the steps of a rank: the stream, and targets by row id; and how long steps wait for them.

Targets are fetched as soon as the coupling has named them: those of later turns while the first turn trains.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from gfgw_prod.data.stream import CellRows, cell_stream
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.shared_memory import shared_memory_problem

if TYPE_CHECKING:
    from gfgw_prod.data.sources import Table
    from gfgw_prod.distributed.cells import CellAssignment
    from gfgw_prod.distributed.world import World
    from gfgw_prod.transport.matching import Match

T = TypeVar("T")


class Feed:
    """Fetches the images of a rank. Collective.

    Args:
        workers: threads that fetch the stream ahead, and one more fetches targets; 0 fetches on demand.

    Raises:
        UserError: if there are workers, and no shared memory.
    """

    def __init__(self, table: Table, workers: int, world: World):
        self._table, self._workers, self._world = table, workers, world
        self._pin = world.device.type == "cuda"
        if workers:
            world.on_all_ranks(require_shared_memory)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="targets") if workers else None
        self._waited, self._since = 0.0, time.perf_counter()  # seconds; when they were last reported

    def stream(
        self, assignment: CellAssignment, seed: int, first_step: int, last_step: int, size: int
    ) -> Iterator[CellRows]:
        """This rank's cells, as ``cell_stream`` has them."""
        return self._timed(
            cell_stream(
                self._table,
                assignment,
                seed=seed,
                first_step=first_step,
                last_step=last_step,
                size=size,
                rank=self._world.rank,
                workers=self._workers,
                pin=self._pin,
            )
        )

    def targets(self, match: Match, slots_by_turn: Sequence[slice]) -> Iterator[Tensor]:
        """Start fetching the target images ``(b, c, h, w)`` in [-1, 1] of each turn's slots; yields them in order."""
        rows = match.rows.cpu()  # where the data set is: one of the two waits for the device in a step

        def fetch(slots: slice) -> Tensor:
            images = self._table.rows(rows[slots])
            return images.pin_memory() if self._pin else images

        if self._pool is None:
            return self._timed(map(fetch, slots_by_turn))
        fetched = deque(self._pool.submit(fetch, slots) for slots in slots_by_turn)
        return self._timed(fetched.popleft().result() for _ in slots_by_turn)

    def values(self) -> dict[str, float]:
        """Share of the time since the last call that steps waited for images, by catalogue tag. Collective."""
        now = time.perf_counter()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return {
            "speed/data_wait_ratio": float(self._world.all_reduce_max(torch.tensor(share, device=self._world.device)))
        }

    def close(self) -> None:
        """End the thread that fetches targets."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def _timed(self, source: Iterator[T]) -> Iterator[T]:
        """The same items, adding up the time that each is waited for."""
        while True:
            started = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - started
            yield item


def require_shared_memory() -> None:
    """Check that threads can fetch the stream: those of torchdata have a semaphore.

    Raises:
        UserError: if there is no shared memory.
    """
    if problem := shared_memory_problem():
        raise UserError(f"data.workers: {problem}; mount a writable tmpfs there, or set data.workers 0")
