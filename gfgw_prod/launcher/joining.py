"""Join a rendezvous that is already complete: its ranks admit those of the late node, and none restarts.

In torch, a late node waits until the others stop their ranks and leave the rendezvous. This module replaces the join
operation of torch's dynamic rendezvous, so it depends on private names of torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    _Action,
    _RendezvousContext,
    _RendezvousExitOp,
    _RendezvousJoinOp,
)

LONGEST_SECONDS = 10.0  # to wait for ranks that admit none yet, because they start or replace a lost one


class Joining:
    """How this node joined the rendezvous.

    Args:
        can_join_now: whether ranks are training that admit this node's now.
        is_possible: whether joining in place is possible in this job at all.

    Attributes:
        is_in_place: whether this node joined ranks that were training, not a new round of all nodes.
    """

    def __init__(self, can_join_now: Callable[[], bool], *, is_possible: bool):
        self._can_join_now, self._is_possible = can_join_now, is_possible
        self.is_in_place = False
        dynamic_rendezvous._RendezvousJoinOp = self._operation  # type: ignore[assignment, misc]

    def _operation(self) -> Callable[[_RendezvousContext, float], _Action]:
        """Make the join operation, which torch calls once a second until this node is a participant."""
        usual, limit = _RendezvousJoinOp(), time.monotonic() + LONGEST_SECONDS
        self.is_in_place = False

        def join(context: _RendezvousContext, deadline: float) -> _Action:
            state, node = context.state, context.node
            waiting = state.wait_list | state.redundancy_list
            has_room = state.complete and len(state.participants) < context.settings.max_nodes and not waiting
            if self._is_possible and has_room and not state.closed and node not in state.participants:
                if self._can_join_now():
                    self.is_in_place = True
                    return _Action.ADD_TO_PARTICIPANTS
                if time.monotonic() < min(limit, deadline):
                    return _Action.SYNC
            action = usual(context, deadline)
            if action in (_Action.ADD_TO_PARTICIPANTS, _Action.ADD_TO_WAIT_LIST):
                self.is_in_place = False
            return action

        return join


def leave(rendezvous: DynamicRendezvousHandler) -> None:
    """Leave a rendezvous that goes on without this node. torch's ``shutdown`` would end it for all nodes."""
    rendezvous._stop_heartbeats()
    rendezvous._op_executor.run(_RendezvousExitOp(), time.monotonic() + LONGEST_SECONDS)
