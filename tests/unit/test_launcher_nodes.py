"""The launcher says what happens at the rendezvous of several nodes, a line for each change."""

from __future__ import annotations

import pickle
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from torch.distributed import HashStore
from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousTimeout,
    _Action,
    _NodeDesc,
    _RendezvousContext,
    _RendezvousState,
)

from gfgw_prod.launcher.joining import Joining
from gfgw_prod.launcher.nodes import Nodes

OTHER, THIRD = _NodeDesc("b", 7, 0), _NodeDesc("b", 8, 0)


class Shared:
    """The state that all nodes share; this test is the other nodes. It is torch's ``RendezvousBackend``."""

    name = "test"

    def __init__(self) -> None:
        self.state = _RendezvousState()

    def get_state(self) -> tuple[bytes, Any]:
        return pickle.dumps(self.state), None

    def set_state(self, state: bytes, token: Any = None) -> tuple[bytes, Any, bool]:
        self.state = pickle.loads(state)
        return state, None, True


def handler_of(shared: Any, nodes: int) -> DynamicRendezvousHandler:
    """The handler of node a in a job of up to so many nodes."""
    limits = RendezvousTimeout(last_call=timedelta(seconds=10))
    handler = DynamicRendezvousHandler.from_backend("job", HashStore(), shared, min(nodes, 2), nodes, "a", limits)
    handler._state_holder._cache_duration = 0  # type: ignore[attr-defined]
    return handler


def test_who_comes_who_is_awaited_and_who_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    shared = Shared()
    handler = handler_of(shared, 3)
    nodes, this, now = Nodes(handler), handler._this_node, datetime.now(UTC)

    def news(*participants: _NodeDesc, complete: bool, waiting: tuple[_NodeDesc, ...] = (), silent: Any = ()) -> str:
        state = shared.state
        state.participants, state.complete, state.wait_list = dict.fromkeys(participants, 0), complete, {*waiting}
        state.last_heartbeats = {
            node: now - timedelta(minutes=node in silent) for node in (*participants, *waiting, *silent)
        }
        handler.num_nodes_waiting()
        handler.num_nodes_waiting()  # says nothing twice
        return capsys.readouterr().err.replace("gfgw launcher: ", "")

    assert news(this, complete=False) == "1 node (a) here; waiting up to 600 s for 1 more\n"
    assert news(this, OTHER, complete=False) == "2 nodes (a, b) here; waiting 10 s for up to 1 more\n"
    assert news(this, OTHER, complete=True) == ""
    assert not nodes.begin_round([0, 1], 4)
    assert capsys.readouterr().err.endswith("all ranks start on 2 nodes (a, b); ranks 0 to 1 of 4 on this one\n")
    joins = "1 node (b [8]) joins: all ranks stop and start with it\n"
    assert news(this, OTHER, complete=True, waiting=(THIRD,)) == joins
    assert news(OTHER, complete=True, waiting=(this,)) == (
        "waiting until 1 node (b) comes too, or has not answered for 15 s\n"
    )
    lost, *_ = news(OTHER, complete=True, waiting=(this,), silent=(OTHER,)).splitlines(keepends=True)
    assert lost == "b is lost: it has not answered for 15 s\n"
    assert news(this, complete=True) == ""
    assert nodes.begin_round([0, 1], 2)
    assert not nodes.begin_round([0, 1], 2)


def test_lost_node_leaves_room_at_once_when_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    shared = Shared()
    handler = handler_of(shared, 3)
    nodes, this, now = Nodes(handler), handler._this_node, datetime.now(UTC)
    shared.state.participants, shared.state.complete = dict.fromkeys((this, OTHER), 0), True
    shared.state.last_heartbeats = dict.fromkeys((this, OTHER), now)
    handler.num_nodes_waiting()
    nodes.begin_round([0], 2)
    assert nodes.present() == {str(this), str(OTHER)}
    capsys.readouterr()

    nodes.adopt({str(this)}, "1 rank on 1 node", is_after_loss=True)
    assert capsys.readouterr().err.endswith("1 node (b) is lost; the run goes on with 1 rank on 1 node\n")
    handler.num_nodes_waiting()
    assert {*shared.state.participants} == {*shared.state.last_heartbeats} == {this}

    shared.state.participants[THIRD], shared.state.last_heartbeats[THIRD] = 0, now
    handler.num_nodes_waiting()
    nodes.adopt({str(this), str(THIRD)}, "2 ranks on 2 nodes", is_after_loss=False)
    assert capsys.readouterr().err.endswith("1 node (b) joins; the run goes on with 2 ranks on 2 nodes\n")
    nodes.adopt({str(this), str(THIRD)}, "2 ranks on 2 nodes", is_after_loss=True)
    assert capsys.readouterr().err == ""
    assert not nodes.begin_round([0], 2)


def test_node_that_joins_leaves_others_that_wait_to_be_let_in_alone(capsys: pytest.CaptureFixture[str]) -> None:
    shared = Shared()
    handler = handler_of(shared, 3)
    nodes, this = Nodes(handler), handler._this_node
    shared.state.participants, shared.state.complete = dict.fromkeys((this, OTHER, THIRD), 0), True
    shared.state.last_heartbeats = dict.fromkeys((this, OTHER, THIRD), datetime.now(UTC))
    handler.num_nodes_waiting()
    nodes.begin_round([1], 2, in_place=True)
    assert capsys.readouterr().err.count("joins ranks that run on 3 nodes") == 1
    nodes.adopt({str(this), str(OTHER)}, "2 ranks on 2 nodes", is_after_loss=False)
    nodes.adopt({str(this), str(OTHER), str(THIRD)}, "3 ranks on 3 nodes", is_after_loss=False)
    assert capsys.readouterr().err.endswith("1 node (b [8]) joins; the run goes on with 3 ranks on 3 nodes\n")
    assert len(nodes.present()) == 3


def test_node_comes_to_ranks_that_run_or_waits_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_rendezvous, "_RendezvousJoinOp", dynamic_rendezvous._RendezvousJoinOp)
    shared, runs = Shared(), [False]
    shared.state.participants, shared.state.complete = {OTHER: 0}, True
    handler = handler_of(shared, 2)
    state, this = shared.state, handler._this_node
    for is_possible, can_join_now, action in (
        (True, True, _Action.ADD_TO_PARTICIPANTS),
        (True, False, _Action.SYNC),
        (False, True, _Action.ADD_TO_WAIT_LIST),
    ):
        runs[0] = can_join_now
        joining = Joining(lambda: runs[0], is_possible=is_possible)
        operation = dynamic_rendezvous._RendezvousJoinOp()
        assert operation(_RendezvousContext(this, state, handler.settings), time.monotonic() + 60) == action
        assert joining.is_in_place == (action == _Action.ADD_TO_PARTICIPANTS)
    joining = Joining(lambda: True, is_possible=True)
    state.participants[THIRD] = 0  # no room
    operation = dynamic_rendezvous._RendezvousJoinOp()
    assert (
        operation(_RendezvousContext(this, state, handler.settings), time.monotonic() + 60)
        == _Action.ADD_TO_REDUNDANCY_LIST
    )


def test_job_of_one_node_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    handler = handler_of(Shared(), 1)
    nodes = Nodes(handler)
    handler.num_nodes_waiting()
    nodes.begin_round([0], 1)
    assert capsys.readouterr().err == ""
