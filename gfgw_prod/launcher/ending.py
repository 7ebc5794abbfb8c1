"""The exit code of a whole job: the node that ends it leaves its verdict at the rendezvous, and every node takes it."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from torch.distributed import PrefixStore, Store
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError

T = TypeVar("T")

CODE, HEARD = "code", "heard"


class Ending:
    """The verdict on a job, in the rendezvous store.

    The first verdict stands: nodes that end a moment later, because of it or for reasons of their own, leave with it.
    """

    def __init__(self, store: Store, run_id: str):
        self._store = PrefixStore(f"gfgw.ending.{run_id}", store)
        self._code: int | None = None

    def heard(self) -> int | None:
        """The verdict, or None as long as there is none.

        Raises:
            RendezvousConnectionError: if the node that hosts the rendezvous has gone.
        """
        if self._code is None and self._asked(lambda: self._store.check([CODE])):
            self._take(self._asked(lambda: self._store.get(CODE)))
        return self._code

    def heard_within(self, seconds: float) -> int | None:
        """The verdict as soon as there is one, or None if there is none for so long."""
        deadline = time.monotonic() + seconds
        while self.heard() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        return self._code

    def declare(self, code: int) -> int:
        """Leave a verdict; returns the one that stands. If the rendezvous has gone, nobody is left to hear of it."""
        with suppress(RendezvousConnectionError):
            if self._code is None:
                self._take(self._asked(lambda: self._store.compare_set(CODE, "", str(code))))
        return code if self._code is None else self._code

    def wait_for_listeners(self, nodes: int, seconds: float) -> None:
        """Wait until so many nodes, this one among them, know the verdict; the store ends with this process."""
        deadline = time.monotonic() + seconds
        with suppress(RendezvousConnectionError):  # another agent on this machine had the store
            while self._asked(lambda: self._store.add(HEARD, 0)) < nodes and time.monotonic() < deadline:
                time.sleep(0.1)

    def _take(self, verdict: bytes) -> None:
        self._code = int(verdict)
        self._asked(lambda: self._store.add(HEARD, 1))

    def _asked(self, question: Callable[[], T]) -> T:
        # As torch does for the rendezvous in the same store.
        try:
            return question()
        except (ValueError, RuntimeError, TimeoutError) as error:
            raise RendezvousConnectionError("The connection to the C10d store has failed.") from error
