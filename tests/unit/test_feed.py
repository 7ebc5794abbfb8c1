"""What steps are fed with: targets by row id, the same however they are fetched, and how long they are waited for."""

import threading
import time

import pytest
import torch
from torch import Tensor

from gfgw_prod.data.decoding import list_source
from gfgw_prod.data.packing import pack
from gfgw_prod.data.sources import Table, load_table
from gfgw_prod.distributed.cells import CellAssignment
from gfgw_prod.distributed.world import World
from gfgw_prod.settings.data import DataSettings
from gfgw_prod.training.feed import Feed
from gfgw_prod.transport.matching import Match

ROWS = torch.tensor([1796, 0, 3, 3, 1000, 999, 500, 17])
TURNS = [slice(4, 8), slice(0, 4)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Table]:
    """The digits, in memory and packed into four files."""
    place = tmp_path_factory.mktemp("pack") / "digits"
    listing = list_source(DataSettings())
    pack(listing, place, shard_rows=500)
    return [load_table(DataSettings()), load_table(DataSettings(source="packed", path=place))]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_targets_come_turn_by_turn_whoever_fetches_them(tables: list[Table], alone: World, workers: int) -> None:
    for table in tables:
        match = Match(ROWS, torch.zeros(8, 64), torch.zeros(8, 64))
        found = list(Feed(table, workers, alone).targets(match, TURNS))
        assert torch.equal(torch.cat(found), tables[0].rows(ROWS[[4, 5, 6, 7, 0, 1, 2, 3]]))


class Slow(Table):
    """A table whose rows take a quarter of a second."""

    def rows(self, ids: Tensor) -> Tensor:
        time.sleep(0.25)
        return super().rows(ids)


def slow(table: Table) -> Slow:
    return Slow(table.images, table.labels, table.peak, table.num_classes)


def test_targets_are_fetched_while_a_turn_trains(tables: list[Table], alone: World) -> None:
    feed = Feed(slow(tables[0]), 1, alone)
    targets = feed.targets(Match(ROWS, torch.zeros(8, 64), torch.zeros(8, 64)), TURNS)
    time.sleep(2)  # of training
    feed.values()
    begun = time.perf_counter()
    assert len(list(targets)) == 2
    assert time.perf_counter() - begun < 0.25


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "least", "most"), [(0, 0.1, 1.0), (2, 0.0, 0.3)])
def test_share_of_time_that_was_waited(
    tables: list[Table], alone: World, workers: int, least: float, most: float
) -> None:
    feed = Feed(slow(tables[0]), workers, alone)
    stream = feed.stream(CellAssignment(2, 1), 0, 0, 10, 4)
    for number in range(8):
        next(stream)
        time.sleep(0.5)
        if number == 2:  # the first is always waited for
            feed.values()
    assert least <= feed.values()["speed/data_wait_ratio"] <= most
    assert feed.values()["speed/data_wait_ratio"] < 0.1  # nothing since


def test_without_workers_no_thread_is_started(tables: list[Table], alone: World) -> None:
    before = set(threading.enumerate())  # of other tests, some of them on their way out
    feed = Feed(tables[1], 0, alone)
    next(feed.stream(CellAssignment(2, 1), 0, 0, 10, 4))
    list(feed.targets(Match(ROWS, torch.zeros(8, 64), torch.zeros(8, 64)), TURNS))
    assert set(threading.enumerate()) <= before
