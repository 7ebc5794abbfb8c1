"""The launcher's side of generations: it replaces lost ranks, goes on without lost nodes, and joins ranks that run."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from torch.distributed import DistError, PrefixStore, Store, TCPStore

from gfgw_prod.launcher.generations import (
    MEETING,
    OVER,
    Generation,
    Member,
    Offer,
    Round,
    answered,
    built,
    here,
    launcher_of,
    missed,
    node_of,
)

RUNNING = "running"  # the key of the prefix of the present round
KEEPER = "keeper"  # the key of the launcher that hosts the rendezvous
ANSWER_SECONDS = 1.0  # for the launchers of all nodes to say that they are there, when a rank misses another
ABSENT_SECONDS = 2.0  # what this node knows of the rendezvous may be a second old


class Regrouping:
    """What this launcher knows of the generations of its ranks, and does to them.

    Args:
        store: of the rendezvous.
        host: at which ranks reach it.
        launcher: name of this launcher, which no other has.
        ranks: of this node.
        fewest_nodes: with which the job goes on.
        current: the newest generation, as far as this launcher has looked; ``None`` before all nodes have started.
    """

    def __init__(self, store: Store, host: str, run_id: str, launcher: str, ranks: int, fewest_nodes: int):
        assert isinstance(store, TCPStore)
        self._store, self._host, self._name = store, host, f"gfgw.generations.{run_id}"
        self._job = PrefixStore(self._name, store)
        self._keeper = self._job.compare_set(KEEPER, "", launcher).decode()  # the first, which has just made the store
        self._launcher, self._ranks, self._fewest_nodes = launcher, ranks, fewest_nodes
        self.node = node_of(launcher, 0)
        self._round = Round(store, self._name)
        self.current: Generation | None = None
        self._met = 0  # the last generation whose ranks have met
        self._joins = False  # this node's ranks are not let in yet
        self._joined_times = 0
        self._missed_at: float | None = None
        self._absent: dict[str, float] = {}  # nodes that have left the rendezvous, and since when

    def begin_round(self, name: str, ranks: Collection[int], world_size: int) -> None:
        """All ranks are about to start, in a round of this name; these are on this node."""
        self._round, self.current = Round(self._store, f"{self._name}.{name}"), None
        self._met, self._joins, self._missed_at = 0, False, None
        self._round.first(self.node, [*ranks], world_size)
        self._job.set(RUNNING, self._round.prefix)
        os.environ[MEETING] = self._offer(0, is_new=False)

    def may_join(self) -> bool:
        """Whether ranks run that can take in those of this node, which then ``begin_joining``."""
        with suppress(DistError):
            if self._job.check([RUNNING]):
                running = Round(self._store, self._job.get(RUNNING).decode())
                current = running.read(running.newest(0)) if running.is_known() else None
                others = {*map(launcher_of, current.nodes)} - {self._launcher} if current else set()
                if current and others and running.may_have(current, len(self._joined(current).members)):
                    self._round, self.current = running, current
                    return True
        return False

    def begin_joining(self) -> None:
        """This node's ranks are about to start, and are let in when they are ready."""
        assert self.current is not None
        self._joined_times += 1
        self.node = node_of(self._launcher, self._joined_times)
        self._met, self._joins, self._missed_at = self.current.number, True, None
        os.environ[MEETING] = self._offer(self.current.number, is_new=True)

    @property
    def first_free(self) -> int:
        """The number of the first rank of this node, if it is let in now."""
        assert self.current is not None
        return len(self._joined(self.current).members) - self._ranks

    @property
    def is_left_out(self) -> bool:
        """Whether the others go on without this node."""
        return self.current is not None and not self._joins and self.node not in self.current.nodes

    def look(self, present: Collection[str]) -> Generation | None:
        """Let ranks of this node in that are ready, and go on without lost nodes.

        Args:
            present: launchers that take part in the rendezvous.

        Returns:
            The newest generation, if it is new to this launcher.
        """
        before = self.current
        with suppress(DistError):  # the rendezvous is gone, which others notice
            if self._follow() is not None:
                self._let_in()
                self._go_on_without_lost(present)
                self._follow()
        return None if self.current is before else self.current

    def can_go_on(self) -> bool:
        """Whether all ranks hold the state, or did until they were lost."""
        return (
            not self._joins
            and (current := self._follow()) is not None
            and self.node in current.nodes
            and self._round.multiple(current) is not None
        )

    def is_forming(self) -> bool:
        """Whether a generation has begun whose ranks have not met yet, here or on other nodes."""
        with suppress(DistError):
            current = self._follow()
            if current is None or self._joins:
                return False
            everyone = [here(current.number, rank) for rank in range(len(current.members))]
            if current.number > self._met and self._round.keys.check(everyone):
                self._met = current.number
            return current.number > self._met
        return False

    def replace(self) -> dict[str, str] | None:
        """Begin a generation with other processes for lost ranks. Returns what they need in their environment.

        ``None`` if another generation has begun meanwhile.
        """
        assert self.current is not None
        following = self.current.followed(is_after_loss=True)
        return {MEETING: self._offer(following.number, is_new=True)} if self._round.begin(following) else None

    def _follow(self) -> Generation | None:
        if self.current is None:
            if not self._round.is_known():
                return None
            self.current = self._round.read(0)
        if (newest := self._round.newest(self.current.number)) > self.current.number:
            self.current, self._missed_at = self._round.read(newest), None
        return self.current

    def _let_in(self) -> None:
        current = self.current
        if current is None or not self._joins:
            return
        following = self._joined(current)
        own = [built((self.node, local)) for local in range(self._ranks)]
        if self._round.keys.check(own) and self._round.may_have(current, len(following.members)):
            self._joins = not self._round.begin(following)

    def _joined(self, current: Generation) -> Generation:
        """The generation with this node's ranks, in place of others that it had before."""
        stale = {node for node in current.nodes if launcher_of(node) == self._launcher}
        return current.followed(stale, [(self.node, local) for local in range(self._ranks)], is_after_loss=bool(stale))

    def _go_on_without_lost(self, present: Collection[str]) -> None:
        current = self.current
        if current is None or len(current.nodes) == 1 or self.node not in current.nodes:
            return
        lost = self._away(current, present) | self._silent(current) if self._launcher in present else set[str]()
        following = current.followed(lost, is_after_loss=True)
        enough = len(following.nodes) >= self._fewest_nodes
        if lost and enough and self._round.may_have(current, len(following.members)):
            self._round.begin(following)
        elif lost and self.is_forming():  # all ranks of this generation would wait for those of lost nodes
            self._round.keys.set(OVER, "")

    def _away(self, current: Generation, present: Collection[str]) -> set[str]:
        """Nodes that have left the rendezvous, or have not answered there for long."""
        now, absent = time.monotonic(), {node for node in current.nodes if launcher_of(node) not in present}
        self._absent = {node: self._absent.get(node, now) for node in absent}
        return {node for node, since in self._absent.items() if now - since > ABSENT_SECONDS}

    def _silent(self, current: Generation) -> set[str]:
        """If a rank misses another: nodes whose launchers do not answer. This one answers."""
        if not self._round.keys.check([missed(current.number)]):
            return set()
        self._round.keys.set(answered(current.number, self.node), "")
        self._missed_at = self._missed_at or time.monotonic()
        if time.monotonic() - self._missed_at < ANSWER_SECONDS:
            return set()
        return {node for node in current.nodes if not self._round.keys.check([answered(current.number, node)])}

    def _offer(self, generation: int, *, is_new: bool) -> str:
        where = self._host, self._store.port, self._round.prefix, self._keeper
        return Offer(*where, generation, self.node, self._fewest_nodes, is_new).text()


def members_named(members: Collection[Member]) -> str:
    """How a log names a number of ranks and their nodes."""
    ranks, nodes = len(members), len({node for node, _ in members})
    return f"{ranks} {'rank' if ranks == 1 else 'ranks'} on {nodes} {'node' if nodes == 1 else 'nodes'}"


def take_numbers(generation: Generation, node: str, group: Any, environments: dict[int, dict[str, str]]) -> None:
    """Give the ranks of a node the numbers that they have in a generation, and their replacements too.

    Args:
        group: torch's ``WorkerGroup``, whose types leave no room for a number of nodes.
    """
    ranks, world_size = generation.ranks_on(node), len(generation.members)
    group.group_world_size = len(generation.nodes)
    for worker in group.workers:
        worker.global_rank = worker.role_rank = rank = ranks[worker.local_rank]
        worker.world_size = worker.role_world_size = world_size
        numbers = {"RANK": rank, "WORLD_SIZE": world_size, "GROUP_WORLD_SIZE": len(generation.nodes)}
        environments[worker.local_rank].update({name: str(number) for name, number in numbers.items()})
