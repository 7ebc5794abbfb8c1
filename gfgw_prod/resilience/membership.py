"""A rank's side of generations: notice that a new generation of ranks has begun, and join its process group.

``launcher/generations.py`` says what a generation is, ``launcher/regrouping.py`` is the launcher's side.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, NoReturn

from torch.distributed import DistError, PrefixStore, Store, TCPStore

from gfgw_prod.distributed.lost_group import connections, leave_lost_groups, prepare_for_aborts
from gfgw_prod.distributed.world import World
from gfgw_prod.launcher.generations import (
    FACTS,
    MEETING,
    MOST,
    OVER,
    Generation,
    Offer,
    Round,
    begun_key,
    built_key,
    done_key,
    here_key,
    launcher_of,
    missed_key,
    ready_key,
)
from gfgw_prod.process.exit_codes import CRASHED, FINISHED
from gfgw_prod.process.fork_server import show_environment
from gfgw_prod.process.restart_causes import RESTART_CAUSE, expected_ranks
from gfgw_prod.process.standard_streams import log
from gfgw_prod.settings.config import Config

NOTICE_SECONDS = 3.0  # for a launcher to begin a generation after a rank is lost; if none begins, all ranks restart
NOTICE_POLL_SECONDS = 0.005
PATIENCE_SECONDS = 5.0  # for the ranks of a generation to meet; then all launchers are asked whether they are alive
FOREVER = timedelta(days=1000)


class RegroupedError(Exception):
    """A new generation has begun: this rank must leave its process group."""


class Membership:
    """This rank's membership in the generations of its job. Call its methods from one thread; it starts another.

    Attributes:
        generation: number of the generation that this rank belongs to or is about to join.
        is_new: whether this rank has no state yet, because it replaces a lost rank or joins others.
    """

    def __init__(self, world: World, offer: Offer):
        self._world, self._offer, self._member = world, offer, (offer.node, world.local_rank)
        self._round = self._connected()
        self._lock = threading.Lock()
        self._read: Generation | None = None  # the generation that was read last
        self._began_at: int | None = None
        self._heard_of = self.generation = offer.generation
        self.is_new = offer.is_new
        # Connect here: a socket opened while a process group is built could be mistaken for one of that group's.
        listener = threading.Thread(target=self._listen, args=(self._connected(),), name="membership", daemon=True)
        listener.start()

    @classmethod
    def offered(cls, config: Config, world: World) -> Membership | None:
        """The membership that the launcher offers; ``None`` if it offers none or the run cannot continue in place."""
        offer = Offer.read(os.environ.pop(MEETING, ""))
        possible = config.resilience.goes_on_in_place(on_gpu=world.device.type == "cuda")
        stays_alone = world.world_size == 1 and (config.distributed.strategy != "ddp" or expected_ranks() == 1)
        if offer is None or not possible or stays_alone:
            return None
        if world.device.type == "cuda":
            prepare_for_aborts()
        return cls(world, offer)

    @property
    def node(self) -> str:
        """Name of this rank's node."""
        return self._offer.node

    @property
    def is_after_loss(self) -> bool:
        """Whether the present generation follows the loss of a rank."""
        return self._present().is_after_loss

    def facts(self) -> dict[str, Any]:
        """Facts of the run, as its rank 0 has published them."""
        found: dict[str, Any] = json.loads(self._round.keys.get(FACTS))
        return found

    @property
    def joins(self) -> bool:
        """Whether this rank joins the others instead of replacing a lost one."""
        return self.is_new and self._member not in self._present().members

    def publish_ready(self, step: int, multiple: int, most: int, facts: dict[str, Any]) -> None:
        """Publish that this rank holds the state. Once all of its generation do, the run survives the loss of one.

        Args:
            step: completed steps when this generation began.
            multiple: what the number of ranks must be a multiple of; 0 if it cannot change.
            most: the largest number of ranks.
            facts: of the run, for ranks that join.

        Raises:
            SystemExit: exit code 1, if the previous loss was in this step too: the step itself may kill ranks.
        """
        present = self._present()
        if present.is_after_loss:
            if step == self._began_at:
                log(f"gfgw: ranks were lost twice in a row in step {step + 1}; all restart", "warning")
                raise SystemExit(CRASHED)
            self._began_at = step
        self.is_new = False
        self._round.keys.set(MOST, str(most))
        if self._world.is_main:
            self._round.keys.set(FACTS, json.dumps(facts))
        self._round.keys.set(ready_key(self.generation, self._world.rank), str(multiple))

    def end(self) -> None:
        """Publish that this rank makes no more steps: no further generation begins."""
        with suppress(DistError):  # the store is gone, so nobody can join
            self._round.keys.set(OVER, "")

    def leave_for_newer(self) -> None:
        """Raise ``RegroupedError`` if a newer generation than this rank's has begun."""
        if self._heard_of > self.generation:
            raise RegroupedError

    def wait_for_next(self, told_to_stop: Callable[[], bool]) -> bool:
        """After a lost connection, wait for the next generation, and shut the connections of the current group down.

        Returns whether this rank goes on in it; if not, no further one can begin. A rank that is told to stop does not
        wait for replacements of lost ranks.
        """
        with suppress(DistError, RuntimeError):  # the launcher is gone
            self._round.keys.set(missed_key(self.generation), "")
            # Counted in polls: if this node stands still for seconds, so does its launcher.
            for _ in range(round(NOTICE_SECONDS / NOTICE_POLL_SECONDS)):
                follows = self._go_to_newest()
                if told_to_stop() and (self.is_after_loss or not follows):
                    break
                if follows:
                    connections.shut_down()
                    return True
                time.sleep(NOTICE_POLL_SECONDS)
            self.end()  # a rank that replaced one or joined now would wait for peers in vain
        return False

    def goes_on_without(self, leaving: Collection[str]) -> bool:
        """Whether the run could continue without these nodes."""
        with suppress(DistError):  # the store is gone
            present = self._present()
            following = present.successor(leaving, is_after_loss=False)
            enough = len(following.nodes) >= self._offer.fewest_nodes
            can_meet = self._offer.keeper not in map(launcher_of, leaving)
            return enough and can_meet and self._round.may_have(present, len(following.members))
        return False

    def let_leave(self, leaving: Collection[str]) -> None:
        """Let the ranks of these nodes leave, and begin a generation of the others. Collective, the last of this group.

        Raises:
            RegroupedError: on the nodes that stay.
        """
        everyone = [done_key(self.generation, rank) for rank in range(self._world.world_size)]
        self._round.keys.set(everyone[self._world.rank], "")
        if self._offer.node in leaving:
            return
        with suppress(DistError):  # a rank that is lost meanwhile never answers
            self._round.keys.wait(everyone, timedelta(seconds=NOTICE_SECONDS / 2))
        following = self._present().successor(leaving, is_after_loss=False)
        if following.members[0] == self._member:
            self._round.begin(following)
        raise RegroupedError

    def rejoin(self, timeout_seconds: int, hang_seconds: float) -> World:
        """Leave the current process group, and join that of the newest generation."""
        leave_lost_groups()
        world, meeting = self.meet(timeout_seconds)
        world.join(timeout_seconds, hang_seconds, meeting)
        return world

    def meet(self, timeout_seconds: int) -> tuple[World, Store]:
        """Wait until all ranks of the newest generation are there.

        Returns:
            The world of that generation, and the store for its process group.

        Raises:
            RuntimeError: if a rank does not come in time.
            SystemExit: if the run has ended meanwhile, or continues without this rank. Exit code 1, so that all
                restart; 0 if it still waits to join, and the other ranks of its node finish or restart.
        """
        deadline = time.monotonic() + timeout_seconds
        if self.joins:
            self._round.keys.set(built_key(self._member), "")
        while True:
            present = self._present()
            if self._member in present.members:
                self._take_number(present)
                self._round.keys.set(here_key(self.generation, self._world.rank), "")
            elif not self.is_new:
                self._give_up("the others go on without this rank")
            everyone = [here_key(self.generation, rank) for rank in range(len(present.members))]
            began, asked = time.monotonic(), False
            while not self._go_to_newest():  # another rank may be lost before all have met
                # A rank that waits to be admitted has no peers to miss.
                if not asked and self._member in present.members and time.monotonic() - began > PATIENCE_SECONDS:
                    asked = True
                    self._round.keys.set(missed_key(self.generation), "")
                if self._member in present.members and self._round.keys.check(everyone) and self._may_begin():
                    return self._world, PrefixStore(f"group/{self.generation}", self._round.keys)
                if self._round.is_over():
                    if self.joins and self.node in present.nodes:  # its other ranks finish, or restart all
                        raise SystemExit(FINISHED)
                    self._give_up("no further generation can begin; all restart")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not all ranks have met again after {timeout_seconds} s; all restart")
                time.sleep(0.002)

    def _give_up(self, why: str) -> NoReturn:
        log(f"gfgw: rank {self._world.rank}: {why}", "warning")
        raise SystemExit(CRASHED)

    def _take_number(self, present: Generation) -> None:
        """Adopt the rank number and world size that this rank has in a generation."""
        ranks, rank = len(present.members), present.members.index(self._member)
        if (rank, ranks) != (self._world.rank, self._world.world_size):
            self._world = replace(self._world, rank=rank, world_size=ranks)
            os.environ.update(present.numbers_of(rank, self._world.local_world_size))
            show_environment()
            os.environ[RESTART_CAUSE] = "membership"

    def _present(self) -> Generation:
        if self._read is None or self._read.number != self.generation:
            self._read = self._round.read(self.generation)
        return self._read

    def _go_to_newest(self) -> bool:
        """Move on to the newest generation; whether that is a newer one than before."""
        before = self.generation
        with self._lock:
            self.generation = self._round.newest(self.generation)
        return self.generation > before

    def _may_begin(self) -> bool:
        """Whether this rank knows of no newer generation. If so, process groups made from now on count as whole."""
        with self._lock:
            is_newest = self._heard_of <= self.generation
            if is_newest:
                connections.begin_anew()
        return is_newest

    def _connected(self) -> Round:
        where = self._offer.host, self._offer.port
        client = TCPStore(*where, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=600))
        return Round(client, self._offer.prefix)

    def _listen(self, to: Round) -> None:
        """Watch for newer generations, and end the collectives of the current process group once one begins."""
        with suppress(DistError, RuntimeError):  # the store is gone, and with it the launcher, which ends this rank
            heard = self.generation
            while True:
                to.keys.wait([begun_key(heard + 1)], FOREVER)
                heard += 1
                with self._lock:
                    self._heard_of = heard
                    if self.generation < heard:
                        connections.shut_down()
