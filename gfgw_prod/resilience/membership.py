"""This rank's membership in a run whose ranks come and go: hear of a new generation of ranks, and join it.

The launcher's side, and what a generation is: ``launcher/generations.py``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import NoReturn

from torch.distributed import DistError, PrefixStore, Store, TCPStore

from gfgw_prod.distributed.lost_group import connections, leave_lost_groups
from gfgw_prod.distributed.world import World
from gfgw_prod.launcher.generations import (
    MEETING,
    MOST,
    OVER,
    Generation,
    Offer,
    Round,
    begun,
    built,
    done,
    here,
    launcher_of,
    missed,
    ready,
)
from gfgw_prod.process.exit_codes import CRASHED
from gfgw_prod.process.fork_server import show_environment
from gfgw_prod.process.restart_causes import RESTART_CAUSE, expected_ranks
from gfgw_prod.process.standard_streams import log
from gfgw_prod.settings.config import Config

NOTICE_SECONDS = 3.0  # for a launcher to begin a generation after a loss; else there is none, and all restart
PATIENCE_SECONDS = 5.0  # for ranks to meet; then launchers say whether their nodes are there
FOREVER = timedelta(days=1000)


class RegroupedError(Exception):
    """A generation has begun, and this rank must leave the present group for it."""


class Membership:
    """Use it from one thread.

    Attributes:
        generation: to which this rank belongs or is about to.
        is_new: whether this rank has no state yet: it was started in place of a lost one, or joins others.
    """

    def __init__(self, world: World, offer: Offer):
        self._world, self._offer, self._member = world, offer, (offer.node, world.local_rank)
        self._round = self._connected()
        self._lock = threading.Lock()
        self._read: Generation | None = None  # the last one
        self._began_at: int | None = None
        self._heard_of = self.generation = offer.generation
        self.is_new = offer.is_new
        # Connected here: a socket that is made while a group is could be taken for one of that group's.
        listener = threading.Thread(target=self._listen, args=(self._connected(),), name="membership", daemon=True)
        listener.start()

    @classmethod
    def offered(cls, config: Config, world: World) -> Membership | None:
        """The membership that the launcher offers; ``None`` without one, and for a run that cannot go on in place."""
        offer = Offer.read(os.environ.pop(MEETING, ""))
        possible = config.resilience.in_place and world.device.type == "cpu"
        stays_alone = world.world_size == 1 and (config.distributed.strategy != "ddp" or expected_ranks() == 1)
        return None if offer is None or not possible or stays_alone else cls(world, offer)

    @property
    def node(self) -> str:
        """That of this rank."""
        return self._offer.node

    @property
    def is_after_loss(self) -> bool:
        """Whether the present generation begins with a loss."""
        return self._present().is_after_loss

    @property
    def joins(self) -> bool:
        """Whether this rank joins others, and replaces none."""
        return self.is_new and self._member not in self._present().members

    def hold_state(self, step: int, multiple: int, most: int) -> None:
        """Say that this rank has the state of the run: the others can go on without a rank that is lost from now on.

        Args:
            step: completed steps when the last rank was lost.
            multiple: of which the number of ranks must be one; 0 if it cannot change.
            most: the largest number of ranks.

        Raises:
            SystemExit: as after a crash, if the one before was lost in this step too: perhaps the step kills a rank.
        """
        present = self._present()
        if present.is_after_loss or present.number == 0:
            if step == self._began_at:
                log(f"gfgw: a rank was lost twice in step {step + 1}; all restart", "warning")
                raise SystemExit(CRASHED)
            self._began_at = step
        self.is_new = False
        self._round.keys.set(MOST, str(most))
        self._round.keys.set(ready(self.generation, self._world.rank), str(multiple))

    def end(self) -> None:
        """Say that this rank makes no more steps."""
        with suppress(DistError):  # the store is gone, and with it all who could join
            self._round.keys.set(OVER, "")

    def leave_for_newer(self) -> None:
        """Raise ``RegroupedError`` if a newer generation has begun than that of this rank."""
        if self._heard_of > self.generation:
            raise RegroupedError

    def is_followed(self, told_to_stop: Callable[[], bool]) -> bool:
        """Wait for the next generation after a lost connection. Whether there is one; if not, none begins any more.

        A rank that is told to stop does not wait for others in the place of lost ones.
        """
        deadline = time.monotonic() + NOTICE_SECONDS
        with suppress(DistError, RuntimeError):  # the launcher is gone
            self._round.keys.set(missed(self.generation), "")
            while time.monotonic() < deadline:
                follows = self._go_to_newest()
                if told_to_stop() and (self.is_after_loss or not follows):
                    break
                if follows:
                    connections.shut_down()
                    return True
                time.sleep(0.005)
            self.end()  # nobody must be replaced or join who would wait for its peers
        return False

    def goes_on_without(self, leaving: Collection[str]) -> bool:
        """Whether the run could go on without these nodes."""
        with suppress(DistError):  # the store is gone
            present = self._present()
            following = present.followed(leaving, is_after_loss=False)
            enough = len(following.nodes) >= self._offer.fewest_nodes
            can_meet = self._offer.keeper not in map(launcher_of, leaving)
            return enough and can_meet and self._round.may_have(present, len(following.members))
        return False

    def part(self, leaving: Collection[str]) -> None:
        """Have the ranks of these nodes leave, and the others go on. All ranks call it, and then meet no more.

        Raises:
            RegroupedError: on the nodes that go on.
        """
        everyone = [done(self.generation, rank) for rank in range(self._world.world_size)]
        self._round.keys.set(everyone[self._world.rank], "")
        if self._offer.node in leaving:
            return
        with suppress(DistError):  # one that is lost meanwhile is waited for in vain
            self._round.keys.wait(everyone, timedelta(seconds=NOTICE_SECONDS / 2))
        following = self._present().followed(leaving, is_after_loss=False)
        if following.members[0] == self._member:
            self._round.begin(following)
        raise RegroupedError

    def rejoin(self, timeout_seconds: int, hang_seconds: float) -> World:
        """Leave the present process group, and join that of the newest generation."""
        leave_lost_groups()
        world, meeting = self.meet(timeout_seconds)
        world.join(timeout_seconds, hang_seconds, meeting)
        return world

    def meet(self, timeout_seconds: int) -> tuple[World, Store]:
        """Wait until all ranks of the newest generation are there. Returns their world, and the store for their group.

        Raises:
            RuntimeError: if a rank does not come in time.
            SystemExit: as after a crash, if the run has ended meanwhile, or goes on without this rank.
        """
        deadline = time.monotonic() + timeout_seconds
        if self.joins:
            self._round.keys.set(built(self._member), "")
        while True:
            present = self._present()
            if self._member in present.members:
                self._take_number(present)
                self._round.keys.set(here(self.generation, self._world.rank), "")
            elif not self.is_new:
                self._give_up("the others go on without this rank")
            everyone = [here(self.generation, rank) for rank in range(len(present.members))]
            began, asked = time.monotonic(), False
            while not self._go_to_newest():  # one more may be lost before it comes
                # A rank that waits to be let in misses nobody.
                if not asked and self._member in present.members and time.monotonic() - began > PATIENCE_SECONDS:
                    asked = True
                    self._round.keys.set(missed(self.generation), "")
                if self._member in present.members and self._round.keys.check(everyone):
                    return self._world, PrefixStore(f"group/{self.generation}", self._round.keys)
                if self._round.is_over():
                    self._give_up("the run ended while ranks came or went; all restart")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not all ranks have met again after {timeout_seconds} s; all restart")
                time.sleep(0.002)

    def _give_up(self, why: str) -> NoReturn:
        log(f"gfgw: rank {self._world.rank}: {why}", "warning")
        raise SystemExit(CRASHED)

    def _take_number(self, present: Generation) -> None:
        """Take the number that this rank has among those of a generation."""
        ranks, rank = len(present.members), present.members.index(self._member)
        if (rank, ranks) != (self._world.rank, self._world.world_size):
            self._world = replace(self._world, rank=rank, world_size=ranks)
            numbers = {"RANK": rank, "WORLD_SIZE": ranks, "GROUP_WORLD_SIZE": len(present.nodes)}
            os.environ.update({name: str(number) for name, number in numbers.items()})
            show_environment()
            os.environ[RESTART_CAUSE] = "membership"

    def _present(self) -> Generation:
        if self._read is None or self._read.number != self.generation:
            self._read = self._round.read(self.generation)
        return self._read

    def _go_to_newest(self) -> bool:
        """Whether there is a newer generation than this rank's."""
        before = self.generation
        with self._lock:
            self.generation = self._round.newest(self.generation)
        return self.generation > before

    def _connected(self) -> Round:
        where = self._offer.host, self._offer.port
        client = TCPStore(*where, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=600))
        return Round(client, self._offer.prefix)

    def _listen(self, to: Round) -> None:
        """Have the operations of the present group fail when there is a newer generation."""
        with suppress(DistError, RuntimeError):
            heard = self.generation
            while True:
                to.keys.wait([begun(heard + 1)], FOREVER)
                heard += 1
                with self._lock:
                    self._heard_of = heard
                    if self.generation < heard:
                        connections.shut_down()
