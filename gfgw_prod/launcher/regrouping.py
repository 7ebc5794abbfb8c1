"""The launcher's side of generations: replace lost ranks, continue without lost nodes, join ranks that are training."""

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
    answered_key,
    built_key,
    here_key,
    launcher_of,
    missed_key,
    node_of,
)

RUNNING = "running"  # key: the prefix of the current round
KEEPER = "keeper"  # key: the launcher that hosts the rendezvous store
ANSWER_SECONDS = 1.0  # for the launchers of all nodes to answer after a rank reported a lost connection
ABSENT_SECONDS = 2.0  # before a node counts as gone: this node's view of the rendezvous may be a second old


class Regrouping:
    """One launcher's view of the generations of the job's ranks, and its changes to them.

    Args:
        store: the store of the rendezvous.
        host: address at which ranks reach the store.
        run_id: name of the job.
        launcher: unique name of this launcher.
        ranks: number of ranks on this node.
        fewest_nodes: smallest number of nodes with which the job continues.
        hosts: whether a launcher on this host hosts the store.
        waits_for_replacements: whether the other ranks wait for one that replaces a lost rank. If not, they continue
            without it where they can, and admit it once it has built its networks.

    Attributes:
        current: the newest generation that this launcher has seen; ``None`` before all nodes have started.
        node: name of this node in generations.
    """

    def __init__(
        self,
        store: Store,
        host: str,
        run_id: str,
        launcher: str,
        ranks: int,
        fewest_nodes: int,
        *,
        hosts: bool = True,
        waits_for_replacements: bool = True,
    ):
        assert isinstance(store, TCPStore)
        self._store, self._host, self._name = store, host, f"gfgw.generations.{run_id}"
        self._job = PrefixStore(self._name, store)
        if hosts:  # of several launchers on that host, the first
            self._job.compare_set(KEEPER, "", launcher)
        self._launcher, self._ranks, self._fewest_nodes, self._waits_for_replacements = (
            launcher,
            ranks,
            fewest_nodes,
            waits_for_replacements,
        )
        self.node = node_of(launcher, 0)
        self._round = Round(store, self._name)
        self.current: Generation | None = None
        self._met = 0  # the last generation whose ranks have met
        self._joining: set[int] = set()  # local ranks that are not admitted yet
        self._joined_times = 0
        self._missed_at: float | None = None
        self._absent: dict[str, float] = {}  # nodes that have left the rendezvous, and since when

    def begin_round(self, name: str, ranks: Collection[int], world_size: int) -> None:
        """Begin a round of this name, in which all ranks start; ``ranks`` are those of this node."""
        self._round, self.current = Round(self._store, f"{self._name}.{name}"), None
        self._met, self._joining, self._missed_at = 0, set(), None
        self._round.first(self.node, [*ranks], world_size)
        self._job.set(RUNNING, self._round.prefix)
        os.environ[MEETING] = self._offer(0, is_new=False)

    def find_running_round(self) -> bool:
        """Whether ranks are training that can admit those of this node. If so, ``begin_joining`` joins them."""
        with suppress(DistError):
            if self._job.check([RUNNING]):
                running = Round(self._store, self._job.get(RUNNING).decode())
                current = running.read(running.newest(0)) if running.is_known() else None
                others = {*map(launcher_of, current.nodes)} - {self._launcher} if current else set()
                if current and others and running.may_have(current, len(self._with_node(current).members)):
                    self._round, self.current = running, current
                    return True
        return False

    def begin_joining(self) -> None:
        """Prepare to start this node's ranks; ``update`` admits them to the training ranks once they are ready."""
        assert self.current is not None
        self._joined_times += 1
        self.node = node_of(self._launcher, self._joined_times)
        self._met, self._joining, self._missed_at = self.current.number, {*range(self._ranks)}, None
        os.environ[MEETING] = self._offer(self.current.number, is_new=True)

    @property
    def first_rank_if_admitted(self) -> int:
        """Number of this node's first rank, if the node were admitted now."""
        assert self.current is not None
        return len(self._with_node(self.current).members) - self._ranks

    @property
    def joining(self) -> Collection[int]:
        """Local ranks that have started and are not admitted yet."""
        return self._joining

    @property
    def awaits_admission(self) -> bool:
        """Whether this node joins others, and none of its ranks is admitted yet."""
        return len(self._joining) == self._ranks

    @property
    def is_left_out(self) -> bool:
        """Whether the other nodes continue without this one."""
        return self.current is not None and not self.awaits_admission and self.node not in self.current.nodes

    def update(self, present: Collection[str]) -> Generation | None:
        """Read the newest generation; begin another if ranks of this node are ready to join, or nodes are lost.

        Args:
            present: launchers that participate in the rendezvous.

        Returns:
            The newest generation if this launcher had not seen it, else ``None``.
        """
        before = self.current
        with suppress(DistError):  # the rendezvous store is gone, which torch's agent notices
            if self._read_newest() is not None:
                self._let_in()
                self._go_on_without_lost(present)
                self._read_newest()
        return None if self.current is before else self.current

    def can_go_on(self, lost: Collection[int]) -> bool:
        """Whether the others hold the state without these local ranks, or have never waited for them."""
        return (
            (current := self._read_newest()) is not None
            and self.node in current.nodes
            and (self._joining.issuperset(lost) or self._round.multiple(current) is not None)
        )

    def is_forming(self) -> bool:
        """Whether the current generation's ranks, on any node, have not all met yet."""
        with suppress(DistError):
            current = self._read_newest()
            if current is None or self.node not in current.nodes:
                return False
            everyone = [here_key(current.number, rank) for rank in range(len(current.members))]
            if current.number > self._met and self._round.keys.check(everyone):
                self._met = current.number
            return current.number > self._met
        return False

    def replace(self, lost: Collection[int]) -> dict[str, str] | None:
        """Begin a generation after a loss of local ranks: with their replacements, or without until those can join.

        Returns:
            Environment variables for the new processes; ``None`` if the others cannot continue, or if another
            generation has begun meanwhile.
        """
        current = self.current
        assert current is not None
        members = [(self.node, local) for local in lost if local not in self._joining]
        if len(members) == len(current.members):
            return None
        following = current
        if members:  # else only ranks are lost that nobody waits for
            without = current.successor(lost=members, is_after_loss=True)
            suffice = self.node in without.nodes and self._round.may_have(current, len(without.members))
            go_on = suffice and not self._waits_for_replacements
            following = without if go_on else current.successor(is_after_loss=True)
            if not self._round.begin(following):
                return None
        self._joining |= {local for local in lost if (self.node, local) not in following.members}
        for local in lost:  # it may have announced that it was built
            self._round.keys.delete_key(built_key((self.node, local)))
        return {MEETING: self._offer(following.number, is_new=True)}

    def _read_newest(self) -> Generation | None:
        if self.current is None:
            if not self._round.is_known():
                return None
            self.current = self._round.read(0)
        if (newest := self._round.newest(self.current.number)) > self.current.number:
            self.current, self._missed_at = self._round.read(newest), None
        return self.current

    def _let_in(self) -> None:
        current = self.current
        if current is None or not self._joining or self.is_left_out:
            return
        following = self._with_node(current)
        if self.node in current.nodes:
            following = current.successor(more=[(self.node, local) for local in self._joining], is_after_loss=False)
        own = [built_key((self.node, local)) for local in self._joining]
        may_begin = self._round.keys.check(own) and self._round.may_have(current, len(following.members))
        if may_begin and self._round.begin(following):
            self._joining = set()

    def _with_node(self, current: Generation) -> Generation:
        """The next generation with all of this node's ranks, which replace those that it had under other names."""
        stale = {node for node in current.nodes if launcher_of(node) == self._launcher}
        return current.successor(stale, [(self.node, local) for local in range(self._ranks)], is_after_loss=bool(stale))

    def _go_on_without_lost(self, present: Collection[str]) -> None:
        current = self.current
        if current is None or len(current.nodes) == 1 or self.node not in current.nodes:
            return
        lost = self._away(current, present) | self._silent(current) if self._launcher in present else set[str]()
        following = current.successor(lost, is_after_loss=True)
        enough = len(following.nodes) >= self._fewest_nodes
        if lost and enough and self._round.may_have(current, len(following.members)):
            self._round.begin(following)
        elif lost and self.is_forming():  # this node's ranks would wait for those of the lost nodes
            self._round.keys.set(OVER, "")

    def _away(self, current: Generation, present: Collection[str]) -> set[str]:
        """Nodes that have been absent from the rendezvous for ``ABSENT_SECONDS``."""
        now, absent = time.monotonic(), {node for node in current.nodes if launcher_of(node) not in present}
        self._absent = {node: self._absent.get(node, now) for node in absent}
        return {node for node, since in self._absent.items() if now - since > ABSENT_SECONDS}

    def _silent(self, current: Generation) -> set[str]:
        """Once a rank has reported a lost connection, answer for this node, and list nodes that do not answer."""
        if not self._round.keys.check([missed_key(current.number)]):
            return set()
        self._round.keys.set(answered_key(current.number, self.node), "")
        self._missed_at = self._missed_at or time.monotonic()
        if time.monotonic() - self._missed_at < ANSWER_SECONDS:
            return set()
        return {node for node in current.nodes if not self._round.keys.check([answered_key(current.number, node)])}

    def _offer(self, generation: int, *, is_new: bool) -> str:
        # The store may be one of another job, whose launchers say nothing here.
        keeper = self._job.get(KEEPER).decode() if self._job.check([KEEPER]) else ""
        where = self._host, self._store.port, self._round.prefix, keeper
        return Offer(*where, generation, self.node, self._fewest_nodes, is_new).text()


def describe_counts(members: Collection[Member]) -> str:
    """Numbers of ranks and nodes for a log line, such as ``4 ranks on 2 nodes``."""
    ranks, nodes = len(members), len({node for node, _ in members})
    return f"{ranks} {'rank' if ranks == 1 else 'ranks'} on {nodes} {'node' if nodes == 1 else 'nodes'}"


def take_numbers(generation: Generation, node: str, group: Any, environments: dict[int, dict[str, str]]) -> None:
    """Give the workers of a node, and processes that will replace them, their rank numbers in a generation.

    Args:
        group: torch's ``WorkerGroup``; untyped because its type lacks ``group_world_size``.
    """
    ranks, world_size = generation.ranks_on(node), len(generation.members)
    group.group_world_size = len(generation.nodes)
    for worker in group.workers:
        if worker.local_rank not in ranks:  # its process joins later
            continue
        worker.global_rank = worker.role_rank = rank = ranks[worker.local_rank]
        worker.world_size = worker.role_world_size = world_size
        environments[worker.local_rank].update(generation.numbers_of(rank, len(group.workers)))
