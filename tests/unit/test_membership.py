"""A rank's side of generations: who may leave, which number a rank has then, and what ends it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
from torch.distributed import TCPStore

from gfgw_prod.distributed.lost_group import Connections
from gfgw_prod.distributed.world import World
from gfgw_prod.launcher.generations import OVER, Offer, Round, built_key, here_key, node_of, ready_key
from gfgw_prod.process.exit_codes import CRASHED, FINISHED
from gfgw_prod.resilience.membership import Membership, RegroupedError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finding a group's sockets needs /proc")
A, B = node_of("a", 0), node_of("b", 0)
FACTS = {"config": {"seed": 0}}
NUMBERS = ("RANK", "WORLD_SIZE", "GROUP_WORLD_SIZE", "GFGW_RESTART_CAUSE")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[TCPStore]:
    """That of a rendezvous. At the end the threads that listen there end too."""
    for name in NUMBERS:
        monkeypatch.setenv(name, "")
    made = Connections()
    with made.noted():
        yield TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    made.shut_down()
    for thread in threading.enumerate():
        if thread.name == "membership":
            thread.join(20)
            assert not thread.is_alive()


def member(
    store: TCPStore, rank: int, node: str, *, local: int = 0, is_new: bool = False, fewest: int = 1
) -> Membership:
    """One of a run of two ranks, each on a node of its own, or another rank."""
    ranks = Round(store, "round")
    ranks.first(A, [0], 2)
    ranks.first(B, [1], 2)
    offer = Offer("localhost", store.port, "round", "a", 0, node, fewest, is_new)
    return Membership(World(rank, 2, torch.device("cpu"), local), offer)


def wait_for(store: TCPStore, *keys: str) -> None:
    """Wait for keys that a rank has just set: the store does not acknowledge that, and each rank has its connection."""
    Round(store, "round").keys.wait([*keys], timedelta(seconds=20))


def both(store: TCPStore, *, fewest: int = 1, multiple: int = 1) -> tuple[Membership, Membership]:
    pair = member(store, 0, A, fewest=fewest), member(store, 1, B, fewest=fewest)
    for each in pair:
        each.publish_ready(0, multiple, 8, FACTS)
    wait_for(store, ready_key(0, 0), ready_key(0, 1))
    return pair


def test_node_may_leave_unless_too_few_are_left_or_it_has_the_store(store: TCPStore) -> None:
    first, second = both(store)
    assert first.goes_on_without({B})
    assert not first.goes_on_without({A})  # the others could not meet
    assert not first.goes_on_without({A, B})
    second.end()
    wait_for(store, OVER)
    assert not first.goes_on_without({B})


@pytest.mark.parametrize(("fewest", "multiple"), [(2, 1), (1, 2), (1, 0)])
def test_node_may_not_leave_where_the_others_cannot_go_on(store: TCPStore, fewest: int, multiple: int) -> None:
    assert not both(store, fewest=fewest, multiple=multiple)[0].goes_on_without({B})


def test_ranks_that_stay_get_new_numbers(store: TCPStore) -> None:
    first, second = both(store)
    first.let_leave({A})  # it leaves, and needs the others no more
    with pytest.raises(RegroupedError):
        second.let_leave({A})
    assert second.wait_for_next(lambda: True)  # a stop signal does not keep it from going on
    world, _ = second.meet(20)
    assert (world.rank, world.world_size) == (0, 1)
    assert [os.environ[name] for name in NUMBERS] == ["0", "1", "1", "membership"]
    assert first.wait_for_next(lambda: False)
    with pytest.raises(SystemExit) as left_out:
        first.meet(20)
    assert left_out.value.code == CRASHED


def test_rank_that_joins_says_that_it_is_ready_and_waits_to_be_let_in(store: TCPStore) -> None:
    c = node_of("c", 1)
    new = member(store, 2, c, is_new=True)
    assert new.joins
    ranks = Round(store, "round")
    following = ranks.read(0).successor(more=[(c, 0)], is_after_loss=False)
    ranks.begin(following)
    for rank in (0, 1):
        ranks.keys.set(here_key(1, rank), "")
    world, _ = new.meet(20)
    assert (world.rank, world.world_size) == (2, 3)
    wait_for(store, built_key((c, 0)))
    new.publish_ready(5, 1, 8, FACTS)
    wait_for(store, ready_key(1, 2))
    assert not new.is_new


@pytest.mark.parametrize(("node", "code"), [(A, FINISHED), (node_of("c", 1), CRASHED)])
def test_rank_that_has_not_joined_when_the_run_ends_leaves(store: TCPStore, node: str, code: int) -> None:
    first, _ = both(store)
    new = member(store, 1, node, local=1, is_new=True)
    assert new.joins
    first.end()
    with pytest.raises(SystemExit) as left:
        new.meet(20)
    assert left.value.code == code


def test_two_losses_in_one_step_restart_all_but_nodes_that_join_are_no_losses(store: TCPStore) -> None:
    first, _ = both(store)
    ranks = Round(store, "round")
    for number, is_after_loss in enumerate((True, False, True), start=1):
        ranks.begin(ranks.read(number - 1).successor(is_after_loss=is_after_loss))
        assert first.wait_for_next(lambda: False)
        if number < 3:
            first.publish_ready(7, 1, 8, FACTS)
        else:
            with pytest.raises(SystemExit) as lost_again:
                first.publish_ready(7, 1, 8, FACTS)
            assert lost_again.value.code == CRASHED


def test_rank_that_is_told_to_stop_does_not_wait_for_another_in_place_of_a_lost_one(store: TCPStore) -> None:
    first, _ = both(store)
    ranks = Round(store, "round")
    ranks.begin(ranks.read(0).successor(is_after_loss=True))
    assert not first.wait_for_next(lambda: True)
    wait_for(store, OVER)


def test_loss_in_the_first_step_of_a_start_is_one_loss(store: TCPStore) -> None:
    first, _ = both(store)
    ranks = Round(store, "round")
    ranks.begin(ranks.read(0).successor(is_after_loss=True))
    assert first.wait_for_next(lambda: False)
    first.publish_ready(0, 1, 8, FACTS)
