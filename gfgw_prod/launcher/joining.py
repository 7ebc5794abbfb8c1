"""A way into a rendezvous that is complete: its ranks take in those of a node that comes later, and none restarts.

torch has nodes that come later wait until all others have left the rendezvous, for which they stop their ranks. All
here depends on torch's insides.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _Action, _RendezvousContext, _RendezvousJoinOp

LONGEST_SECONDS = 10.0  # until ranks can take others in, which they cannot while they start or replace a lost one


class Joining:
    """How this node has come into the rendezvous.

    Args:
        may_join: whether ranks run that take others in.
        is_possible: whether there may be such ranks at all.

    Attributes:
        is_in_place: whether it has come to ranks that run, and not to a round of all nodes.
    """

    def __init__(self, may_join: Callable[[], bool], *, is_possible: bool):
        self._may_join, self._is_possible = may_join, is_possible
        self.is_in_place = False
        dynamic_rendezvous._RendezvousJoinOp = self._operation  # type: ignore[assignment, misc]

    def _operation(self) -> Callable[[_RendezvousContext, float], _Action]:
        """What torch calls once a second until this node has come in."""
        usual, limit = _RendezvousJoinOp(), time.monotonic() + LONGEST_SECONDS
        self.is_in_place = False

        def join(context: _RendezvousContext, deadline: float) -> _Action:
            state, node = context.state, context.node
            waiting = state.wait_list | state.redundancy_list
            has_room = state.complete and len(state.participants) < context.settings.max_nodes and not waiting
            if self._is_possible and has_room and not state.closed and node not in state.participants:
                if self._may_join():
                    self.is_in_place = True
                    return _Action.ADD_TO_PARTICIPANTS
                if time.monotonic() < min(limit, deadline):
                    return _Action.SYNC
            action = usual(context, deadline)
            if action in (_Action.ADD_TO_PARTICIPANTS, _Action.ADD_TO_WAIT_LIST):
                self.is_in_place = False
            return action

        return join
