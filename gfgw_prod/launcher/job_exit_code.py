"""The exit code of a whole job, in the rendezvous store: the node that ends the job sets it, and all nodes take it."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from torch.distributed import PrefixStore, Store
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError

T = TypeVar("T")

CODE, READERS = "code", "heard"  # keys in the store


class JobExitCode:
    """The exit code of the job that a store belongs to, once it is decided.

    The first code that is set stands. Nodes that end a moment later, because of it or for other reasons, take it too.
    """

    def __init__(self, store: Store, run_id: str):
        self._store = PrefixStore(f"gfgw.ending.{run_id}", store)
        self._code: int | None = None

    def read(self) -> int | None:
        """The code, or None while the job goes on.

        Raises:
            RendezvousConnectionError: if the node that hosts the rendezvous is gone.
        """
        if self._code is None and self._ask(lambda: self._store.check([CODE])):
            self._take(self._ask(lambda: self._store.get(CODE)))
        return self._code

    def wait(self, seconds: float) -> int | None:
        """The code as soon as it is set, or None if that takes longer. Raises as ``read`` does."""
        deadline = time.monotonic() + seconds
        while self.read() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        return self._code

    def set(self, code: int) -> int:
        """Set the code, unless another node has. Returns the one that stands; without a rendezvous, ``code``."""
        with suppress(RendezvousConnectionError):
            if self._code is None:
                self._take(self._ask(lambda: self._store.compare_set(CODE, "", str(code))))
        return code if self._code is None else self._code

    def wait_for_readers(self, nodes: int, seconds: float) -> None:
        """Wait until that many nodes, this one included, have read the code: the store ends with this process."""
        deadline = time.monotonic() + seconds
        with suppress(RendezvousConnectionError):  # another agent on this machine had the store
            while self._ask(lambda: self._store.add(READERS, 0)) < nodes and time.monotonic() < deadline:
                time.sleep(0.1)

    def _take(self, code: bytes) -> None:
        self._code = int(code)
        self._ask(lambda: self._store.add(READERS, 1))

    def _ask(self, question: Callable[[], T]) -> T:
        # The same translation of errors as torch's for the rendezvous in this store.
        try:
            return question()
        except (ValueError, RuntimeError, TimeoutError) as error:
            raise RendezvousConnectionError("The connection to the C10d store has failed.") from error
