"""This rank's membership in a run whose lost ranks are replaced: hear of a new generation of ranks, and join it.

The launcher's side, and what a generation is: ``launcher/generations.py``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from torch.distributed import DistError, PrefixStore, Store, TCPStore

from gfgw_prod.distributed.lost_group import connections, leave_lost_groups
from gfgw_prod.distributed.world import World
from gfgw_prod.launcher.generations import MEETING, OVER, begun, here, ready
from gfgw_prod.process.exit_codes import CRASHED
from gfgw_prod.process.standard_streams import log
from gfgw_prod.settings.config import Config

NOTICE_SECONDS = 3.0  # for the launcher of a lost rank to begin a generation; else there is none, and all restart
FOREVER = timedelta(days=1000)


class Membership:
    """Use it from one thread.

    Attributes:
        generation: to which this rank belongs or is about to.
        is_new: whether this rank was started in place of a lost one, and has no state yet.
    """

    def __init__(self, world: World, host: str, port: int, prefix: str, generation: int):
        self._world, self._address, self._prefix = world, (host, port), prefix
        self._store = self._connected()
        self._lock = threading.Lock()
        self._began_at: int | None = None
        self.generation, self.is_new = generation, generation > 0
        threading.Thread(target=self._listen, name="membership", daemon=True).start()

    @classmethod
    def offered(cls, config: Config, world: World) -> Membership | None:
        """The membership that the launcher offers; ``None`` without one, and for a run that cannot go on in place."""
        offer = os.environ.pop(MEETING, "").split(" ")
        possible = config.resilience.in_place and world.device.type == "cpu"
        if len(offer) != 4 or not possible or world.world_size == 1:
            return None
        host, port, prefix, generation = offer
        return cls(world, host, int(port), prefix, int(generation))

    def hold_state(self, step: int) -> None:
        """Say that this rank has the state of the run: if a rank is lost from now on, the others can go on.

        Args:
            step: completed steps when the last rank was lost.

        Raises:
            SystemExit: as after a crash, if the one before was lost in this step too: perhaps the step kills a rank.
        """
        if step == self._began_at:
            log(f"gfgw: a rank was lost twice in step {step + 1}; all restart", "warning")
            raise SystemExit(CRASHED)
        self._began_at, self.is_new = step, False
        self._store.set(ready(self.generation, self._world.rank), "")

    def end(self) -> None:
        """Say that this rank makes no more steps."""
        self._store.set(OVER, "")

    def is_peer_replaced(self, told_to_stop: Callable[[], bool]) -> bool:
        """Wait for the next generation after a lost connection. Whether there is one; if not, none begins any more."""
        deadline = time.monotonic() + NOTICE_SECONDS
        with suppress(DistError, RuntimeError):  # the launcher is gone
            while not told_to_stop() and time.monotonic() < deadline:
                if self._go_to_newest():
                    connections.shut_down()
                    return True
                time.sleep(0.005)
            self.end()  # perhaps a whole node is lost: nobody must be replaced who would wait for its ranks
        return False

    def rejoin(self, timeout_seconds: int, hang_seconds: float) -> None:
        """Leave the lost process group, and join that of the newest generation."""
        leave_lost_groups()
        self._world.join(timeout_seconds, hang_seconds, self.meet(timeout_seconds))

    def meet(self, timeout_seconds: int) -> Store:
        """Wait until all ranks of the newest generation are there. Returns the store for their group.

        Raises:
            RuntimeError: if the run has ended meanwhile, or a rank does not come in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._store.set(here(self.generation, self._world.rank), "")
            everyone = [here(self.generation, rank) for rank in range(self._world.world_size)]
            while not self._go_to_newest():  # one more may be lost before it comes
                if self._store.check(everyone):
                    return PrefixStore(f"group/{self.generation}", self._store)
                if self._store.check([OVER]):
                    raise RuntimeError("the run ended while a lost rank was replaced; all restart")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not all ranks have met again after {timeout_seconds} s; all restart")
                time.sleep(0.002)

    def _go_to_newest(self) -> bool:
        """Whether there is a newer generation than this rank's."""
        before = self.generation
        with self._lock:
            while self._store.check([begun(self.generation + 1)]):
                self.generation += 1
        return self.generation > before

    def _connected(self) -> PrefixStore:
        client = TCPStore(*self._address, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=600))
        return PrefixStore(self._prefix, client)

    def _listen(self) -> None:
        """Have the operations of the present group fail when there is a newer generation."""
        with suppress(DistError, RuntimeError):
            store, heard = self._connected(), self.generation
            while True:
                store.wait([begun(heard + 1)], FOREVER)
                heard += 1
                with self._lock:
                    if self.generation < heard:
                        connections.shut_down()
