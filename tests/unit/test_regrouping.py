"""Who is in the next generation of ranks, as launchers decide it in the rendezvous' store."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from gfgw_prod.launcher import regrouping
from gfgw_prod.launcher.generations import (
    MEETING,
    MOST,
    OVER,
    Generation,
    Offer,
    Round,
    built_key,
    here_key,
    missed_key,
    node_of,
    ready_key,
)
from gfgw_prod.launcher.regrouping import Regrouping

A, B, C = "a_1_0", "b_2_0", "c_3_0"
BOTH = {A, B}


def members(*counts: tuple[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple((node, local) for node, ranks in counts for local in range(ranks))


A0, B0, C1 = node_of(A, 0), node_of(B, 0), node_of(C, 1)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """That of a rendezvous. Launchers are asked once whether they are there, and believed to be away at once."""
    monkeypatch.setattr(regrouping, "ANSWER_SECONDS", 0.0)
    monkeypatch.setattr(regrouping, "ABSENT_SECONDS", -1.0)
    monkeypatch.setitem(os.environ, MEETING, "")
    return TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))


def launchers(
    store: TCPStore, *, fewest: int = 1, multiple: int = 1, most: int = 8, waits_for_replacements: bool = True
) -> tuple[Regrouping, Regrouping, Round]:
    """Those of two nodes with two ranks each, which all hold the state."""
    a, b = (
        Regrouping(store, "localhost", "job", name, 2, fewest, waits_for_replacements=waits_for_replacements)
        for name in (A, B)
    )
    a.begin_round("first", [0, 1], 4)
    assert a.update(BOTH) is None
    b.begin_round("first", [2, 3], 4)
    seen = a.update(BOTH)
    assert seen == Generation(0, members((A0, 2), (B0, 2)))
    offer = Offer.read(os.environ[MEETING])
    assert offer is not None
    ranks = Round(store, offer.prefix)
    hold_state(ranks, seen, multiple, most)
    return a, b, ranks


def hold_state(ranks: Round, generation: Generation, multiple: int = 1, most: int = 8) -> None:
    ranks.keys.set(MOST, str(most))
    for rank in range(len(generation.members)):
        ranks.keys.set(here_key(generation.number, rank), "")
        ranks.keys.set(ready_key(generation.number, rank), str(multiple))


def test_nobody_is_lost_while_all_launchers_answer(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, ranks = launchers(store)
    ranks.keys.set(missed_key(0), "")
    monkeypatch.setattr(regrouping, "ANSWER_SECONDS", 60.0)
    a.update(BOTH)
    b.update(BOTH)
    monkeypatch.setattr(regrouping, "ANSWER_SECONDS", 0.0)
    assert a.update(BOTH) is None
    assert ranks.newest(0) == 0


def test_node_whose_launcher_does_not_answer_is_gone_on_without(store: TCPStore) -> None:
    a, b, ranks = launchers(store)
    ranks.keys.set(missed_key(0), "")
    assert a.update(BOTH) == Generation(1, members((A0, 2)), is_after_loss=True)
    assert b.update(BOTH) is not None
    assert b.is_left_out
    assert not a.is_left_out


def test_node_that_has_left_the_rendezvous_is_gone_on_without(store: TCPStore) -> None:
    a, _, _ = launchers(store)
    assert a.update({A}) == Generation(1, members((A0, 2)), is_after_loss=True)


def test_launcher_that_is_not_at_the_rendezvous_itself_decides_nothing(store: TCPStore) -> None:
    a, _, _ = launchers(store)
    assert a.update(set()) is None


@pytest.mark.parametrize(("fewest", "multiple"), [(2, 1), (1, 4), (1, 0)])
def test_all_restart_where_the_rest_cannot_go_on(store: TCPStore, fewest: int, multiple: int) -> None:
    """Too few nodes, half of a copy of the generator, or ranks whose number cannot change."""
    a, _, _ = launchers(store, fewest=fewest, multiple=multiple)
    assert a.update({A}) is None


def test_nobody_goes_on_when_a_rank_makes_no_more_steps(store: TCPStore) -> None:
    a, _, ranks = launchers(store)
    ranks.keys.set(OVER, "")
    assert a.update({A}) is None
    assert not a.can_go_on([0])


def test_ranks_do_not_wait_for_a_node_that_is_lost_while_they_meet(store: TCPStore) -> None:
    a, _, ranks = launchers(store)
    assert a.replace([0]) is not None
    assert a.update({A}) is not None
    assert a.is_forming()
    assert ranks.is_over()


def test_of_two_launchers_with_a_lost_rank_one_begins_the_next_generation(store: TCPStore) -> None:
    a, b, _ = launchers(store)
    assert a.can_go_on([0])
    assert b.can_go_on([0])
    offer = Offer.read((a.replace([0]) or {})[MEETING])
    assert offer is not None
    assert (offer.generation, offer.node, offer.is_new, offer.keeper) == (1, A0, True, A)
    b.replace([0])  # the same generation
    assert not b.can_go_on([0])  # until its ranks have met


def test_ranks_go_on_without_a_lost_one_that_joins_once_it_is_built(store: TCPStore) -> None:
    a, b, ranks = launchers(store, waits_for_replacements=False)
    offer = Offer.read((a.replace([0]) or {})[MEETING])
    assert offer is not None
    assert (offer.generation, offer.node, offer.is_new) == (1, A0, True)
    without = a.update(BOTH)
    assert without == Generation(1, ((A0, 1), *members((B0, 2))), is_after_loss=True)
    assert [*a.joining] == [0]
    assert not a.awaits_admission
    hold_state(ranks, without)
    assert a.update(BOTH) is None
    ranks.keys.set(built_key((A0, 0)), "")
    assert a.update(BOTH) == Generation(2, members((A0, 2), (B0, 2)))
    assert [*a.joining] == []
    assert b.update(BOTH) == Generation(2, members((A0, 2), (B0, 2)))


def test_rank_that_is_lost_before_it_has_joined_costs_the_others_nothing(store: TCPStore) -> None:
    a, _, ranks = launchers(store, waits_for_replacements=False)
    a.replace([0])
    without = a.update(BOTH)
    assert without is not None
    assert a.can_go_on([0])  # though the others have not met yet
    assert not a.can_go_on([0, 1])
    ranks.keys.set(built_key((A0, 0)), "")
    offer = Offer.read((a.replace([0]) or {})[MEETING])
    assert offer is not None
    assert offer.generation == 1
    hold_state(ranks, without)
    assert a.update(BOTH) is None  # until the second process is built too
    assert a.replace([1]) is not None  # the last rank of its node keeps its place
    assert a.update(BOTH) == Generation(2, without.members, is_after_loss=True)
    assert [*a.joining] == [0]


def test_node_that_is_left_out_while_a_rank_of_it_joins_does_not_take_its_others_along(store: TCPStore) -> None:
    a, b, ranks = launchers(store, waits_for_replacements=False)
    b.update(BOTH)
    b.replace([1])
    without = a.update(BOTH)
    assert without is not None
    hold_state(ranks, without)
    ranks.keys.set(missed_key(1), "")
    alone = a.update(BOTH)
    assert alone == Generation(2, members((A0, 2)), is_after_loss=True)
    hold_state(ranks, alone)
    ranks.keys.set(built_key((B0, 1)), "")
    assert b.update(BOTH) == alone
    assert b.is_left_out


@pytest.mark.parametrize("multiple", [2, 0])
def test_lost_rank_is_waited_for_where_the_others_need_it(store: TCPStore, multiple: int) -> None:
    a, _, _ = launchers(store, multiple=multiple, waits_for_replacements=False)
    assert a.replace([0]) is not None
    assert a.update(BOTH) == Generation(1, members((A0, 2), (B0, 2)), is_after_loss=True)
    assert [*a.joining] == []


def test_nothing_is_left_when_all_ranks_are_lost(store: TCPStore) -> None:
    a = Regrouping(store, "localhost", "job", A, 2, 1)
    a.begin_round("first", [0, 1], 2)
    assert a.update({A}) == Generation(0, members((A0, 2)))
    assert a.replace([0, 1]) is None


def test_launcher_that_comes_before_the_one_with_the_store_does_not_pass_for_it(store: TCPStore) -> None:
    b = Regrouping(store, "localhost", "job", B, 2, 1, hosts=False)
    a = Regrouping(store, "localhost", "job", A, 2, 1)
    a.begin_round("first", [0, 1], 4)
    b.begin_round("first", [2, 3], 4)  # which offers its ranks a place
    offer = Offer.read(os.environ[MEETING])
    assert offer is not None
    assert offer.keeper == A


def test_node_joins_when_its_ranks_are_ready(store: TCPStore) -> None:
    a, _, ranks = launchers(store)
    c = Regrouping(store, "localhost", "job", C, 1, 1)
    assert c.find_running_round()
    assert c.first_rank_if_admitted == 4
    c.begin_joining()
    assert c.update({*BOTH, C}) is None
    ranks.keys.set(built_key((C1, 0)), "")
    joined = c.update({*BOTH, C})
    assert joined == Generation(1, members((A0, 2), (B0, 2), (C1, 1)))
    assert a.update({*BOTH, C}) == joined
    assert joined.ranks_on(C1) == {0: 4}


def test_node_does_not_join_ranks_that_hold_no_state(store: TCPStore) -> None:
    c = Regrouping(store, "localhost", "job", C, 1, 1)
    assert not c.find_running_round()
    a, _, _ = launchers(store, multiple=2)
    assert not c.find_running_round()  # half of a copy of the generator
    assert a.replace([0]) is not None
    assert not Regrouping(store, "localhost", "job", C, 2, 1).find_running_round()  # its ranks have not met


@pytest.mark.parametrize(("most", "may"), [(4, False), (5, True)])
def test_node_does_not_join_with_more_ranks_than_there_is_work_for(store: TCPStore, most: int, may: bool) -> None:
    launchers(store, most=most)
    assert Regrouping(store, "localhost", "job", C, 1, 1).find_running_round() == may


def test_node_that_comes_again_takes_the_place_of_its_earlier_ranks(store: TCPStore) -> None:
    _, b, ranks = launchers(store)
    assert b.find_running_round()
    assert b.first_rank_if_admitted == 2
    b.begin_joining()
    for local in range(2):
        ranks.keys.set(built_key((node_of(B, 1), local)), "")
    assert b.update(BOTH) == Generation(1, members((A0, 2), (node_of(B, 1), 2)), is_after_loss=True)


def test_node_whose_ranks_were_the_only_ones_has_nobody_to_join(store: TCPStore) -> None:
    a = Regrouping(store, "localhost", "job", A, 1, 1)
    a.begin_round("first", [0], 1)
    alone = a.update({A})
    assert alone is not None
    offer = Offer.read(os.environ[MEETING])
    assert offer is not None
    hold_state(Round(store, offer.prefix), alone)
    assert not a.find_running_round()
    assert Regrouping(store, "localhost", "job", B, 1, 1).find_running_round()
