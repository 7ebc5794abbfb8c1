"""Log lines about a job's nodes, as the rendezvous shows them: who joins, who is lost, what it waits for."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    _BackendRendezvousStateHolder,
    _NodeDesc,
    _RendezvousState,
)

from gfgw_prod.launcher import log

MOST_NAMED = 16  # nodes in a line


class Nodes:
    """Watches the rendezvous whenever torch polls it, every few seconds. It logs nothing in a job of one node."""

    def __init__(self, handler: DynamicRendezvousHandler):
        assert isinstance(handler._state_holder, _BackendRendezvousStateHolder)
        self._handler, self._holder = handler, handler._state_holder
        self._several = handler.settings.max_nodes > 1
        self._members: frozenset[_NodeDesc] = frozenset()  # of the last round
        self._lost: set[_NodeDesc] = set()
        self._said = ""
        if self._several:
            self._sync, self._holder.sync = self._holder.sync, self._sync_and_tell  # type: ignore[method-assign]

    def begin_round(self, ranks: Sequence[int], world_size: int, *, in_place: bool = False) -> bool:
        """Log that a round begins with these ranks on this node. Returns whether the last round had other nodes.

        Args:
            in_place: whether this node joins ranks that are training.
        """
        last, self._members, self._said = self._members, frozenset(self._holder.state.participants), ""
        if self._several:
            here = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
            start = "joins ranks that run" if in_place else "all ranks start"
            log(f"{start} on {self._listed(self._members)}; {here} of {world_size} on this one")
        others = last not in (frozenset(), self._members)
        if in_place:  # some of them may wait to be let in themselves
            self._members = frozenset()
        return others

    def present(self) -> frozenset[str]:
        """Names of the nodes that participate in the rendezvous."""
        return frozenset(map(str, self._holder.state.participants))

    def adopt(self, launchers: Collection[str], ranks: str, *, is_after_loss: bool) -> None:
        """Adopt a new generation, of the ranks of these launchers: remove other nodes from the rendezvous at once.

        Args:
            ranks: number of ranks and nodes, in words.
            is_after_loss: whether the removed nodes are lost; if not, they have left in order.
        """
        with self._handler._heartbeat_lock:
            state = self._holder.state
            now = frozenset(node for node in state.participants if str(node) in launchers)
            gone = {node for node in self._members if str(node) not in launchers}
            fewer, more = "is lost" if is_after_loss else "leaves", now - self._members if self._members else set()
            news = [f"{self._listed(nodes)} {what}" for nodes, what in ((gone, fewer), (more, "joins")) if nodes]
            if news:
                log(f"{', '.join(news)}; the run goes on with {ranks}")
            for node in gone & state.participants.keys():
                del state.participants[node]
                state.last_heartbeats.pop(node, None)
                self._holder.mark_dirty()
            self._members = now

    def _sync_and_tell(self) -> bool | None:
        written = self._sync()
        state, this = self._holder.state, self._handler._this_node
        if not state.closed:
            for node in {*self._holder._dead_nodes} - self._lost - {this}:
                self._lost.add(node)
                log(f"{self._name(node)} is lost: it has not answered for {self._patience:.0f} s", "warning")
            if (news := self._awaited(state, this)) not in ("", self._said):
                self._said = news
                log(news)
        return written

    def _awaited(self, state: _RendezvousState, this: _NodeDesc) -> str:
        """What the rendezvous waits for, in words; empty if for nothing."""
        settings, there = self._handler.settings, state.participants
        fewest, most = settings.min_nodes, settings.max_nodes
        if this in there and state.complete:
            return f"{self._listed(state.wait_list)} joins: all ranks stop and start with it" if state.wait_list else ""
        if this in there and len(there) < fewest:
            limit = settings.timeout.join.total_seconds()
            return f"{self._listed(there)} here; waiting up to {limit:.0f} s for {fewest - len(there)} more"
        if this in there:
            limit = settings.timeout.last_call.total_seconds()
            return f"{self._listed(there)} here; waiting {limit:.0f} s for up to {most - len(there)} more"
        if this in state.wait_list and there:
            return f"waiting until {self._listed(there)} comes too, or has not answered for {self._patience:.0f} s"
        return f"{self._listed(there)} take part, and this one is spare" if this in state.redundancy_list else ""

    @property
    def _patience(self) -> float:
        settings = self._handler.settings
        return settings.keep_alive_interval.total_seconds() * settings.keep_alive_max_attempt

    def _listed(self, nodes: Collection[_NodeDesc]) -> str:
        names = [self._name(node) for node in sorted(nodes)[:MOST_NAMED]]
        more = [f"{len(nodes) - MOST_NAMED} more"] if len(nodes) > MOST_NAMED else []
        return f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} ({', '.join(names + more)})"

    def _name(self, node: _NodeDesc) -> str:
        shared = {other.pid for other in self._holder.state.last_heartbeats if other.addr == node.addr} - {node.pid}
        return f"{node.addr} [{node.pid}]" if shared else node.addr
