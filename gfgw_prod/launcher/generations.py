"""Generations of a job's ranks: a lost rank is replaced, and the others stay.

Ranks that could go on with a new peer say so in the rendezvous' store. If one is lost then, its launcher begins the
next generation there and starts a rank in its place; ``resilience/membership.py`` is the ranks' side.
"""

from __future__ import annotations

import os
from contextlib import suppress

from torch.distributed import DistError, PrefixStore, Store, TCPStore

OVER = "over"  # the key that says that a rank makes no more steps: from now on nobody can be replaced
MEETING = "GFGW_GENERATIONS"  # host, port and prefix of the store, and the generation with which a rank begins


def ready(generation: int, rank: int) -> str:
    """The key that says that a rank of a generation holds the state of the run."""
    return f"ready/{generation}/{rank}"


def begun(generation: int) -> str:
    """The key that says that a generation has begun."""
    return f"begun/{generation}"


def here(generation: int, rank: int) -> str:
    """The key that says that a rank is about to join the group of a generation."""
    return f"group/{generation}/here/{rank}"


class Generations:
    """The launcher's side.

    Args:
        store: of the rendezvous.
        host: at which ranks reach it.
    """

    def __init__(self, store: Store, host: str, run_id: str):
        assert isinstance(store, TCPStore)
        self._store, self._host, self._run_id = store, host, run_id
        self._prefix = ""

    def begin_round(self, name: str) -> None:
        """All ranks are about to start, in a round of this name."""
        self._prefix = f"gfgw.generations.{self._run_id}.{name}"
        self._met = 0  # the last generation whose ranks have met
        self._keys = PrefixStore(self._prefix, self._store)
        os.environ[MEETING] = self._meeting(0)

    def can_go_on(self, ranks: int) -> bool:
        """Whether all ranks hold the state, or did until they were lost."""
        current = self._keys.add("number", 0)
        return self._keys.check([ready(current, rank) for rank in range(ranks)]) and not self._keys.check([OVER])

    def is_forming(self, ranks: int) -> bool:
        """Whether a generation has begun whose ranks have not met yet, here or on other nodes."""
        with suppress(DistError):  # the rendezvous is gone, which others notice
            current = self._keys.add("number", 0)
            if current > self._met and self._keys.check([here(current, rank) for rank in range(ranks)]):
                self._met = current
            return current > self._met
        return False

    def begin_next(self) -> dict[str, str]:
        """Begin the next generation. Returns the variables for the ranks that are new in it."""
        number = self._keys.add("number", 1)
        self._keys.set(begun(number), "")
        return {MEETING: self._meeting(number)}

    def _meeting(self, generation: int) -> str:
        return f"{self._host} {self._store.port} {self._prefix} {generation}"
