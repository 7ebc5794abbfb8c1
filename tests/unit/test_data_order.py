"""The order of data: every row once an epoch, as a function of seed and position alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gfgw_prod.data.sources import Table
from gfgw_prod.data.stream import CellRows, KeyedOrder, cell_stream, flip_some
from gfgw_prod.distributed.cells import CellAssignment


@given(length=st.integers(1, 40), epoch=st.integers(0, 5), seed=st.integers(0, 2**62))
def test_every_row_comes_once_an_epoch(length: int, epoch: int, seed: int) -> None:
    rows = KeyedOrder(seed, length).rows(epoch * length, length)
    assert sorted(rows.tolist()) == list(range(length))


@given(start=st.integers(0, 100), counts=st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_pieces_join_across_epochs(start: int, counts: list[int]) -> None:
    order, pieces, position = KeyedOrder(1, 13), [], start
    for count in counts:
        pieces.append(KeyedOrder(1, 13).rows(position, count))
        position += count
    assert torch.equal(torch.cat(pieces), order.rows(start, sum(counts)))


def test_order_does_not_depend_on_earlier_reads() -> None:
    order = KeyedOrder(1, 50)
    late = order.rows(500, 20)
    order.rows(0, 333)
    assert torch.equal(order.rows(500, 20), late)


def test_order_differs_by_epoch_seed_and_stream() -> None:
    epochs = [KeyedOrder(1, 50).rows(epoch * 50, 50).tolist() for epoch in (0, 1)]
    others = [KeyedOrder(2, 50).rows(0, 50).tolist(), KeyedOrder(1, 50, stream="bank").rows(0, 50).tolist()]
    assert len({tuple(rows) for rows in epochs + others}) == 4


def cells_of(table: Table, world_size: int, first_step: int = 0, workers: int = 1) -> dict[tuple[int, int], CellRows]:
    """The rows of all cells from the streams of all ranks, up to step 4 of 5 cells of 4 rows."""
    found = {}
    for rank in range(world_size):
        assignment = CellAssignment(5, world_size)
        places = {"first_step": first_step, "last_step": 4, "size": 4, "rank": rank}
        stream = cell_stream(table, assignment, seed=9, **places, workers=workers)
        for step in range(first_step, 4):
            for turn in assignment.turns_of(9, step, size=4, rank=rank):
                rows = next(stream)
                assert rows.cell == turn.cell
                if turn.counts:
                    assert (step, turn.cell.index) not in found
                    found[step, turn.cell.index] = rows
        assert next(stream, None) is None
    return found


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 4), (2, 0), (2, 1), (3, 1), (4, 0), (4, 4), (5, 1)])
def test_any_number_of_ranks_and_workers_reads_the_same_cells(table: Table, world_size: int, workers: int) -> None:
    expected, found = cells_of(table, 1), cells_of(table, world_size, workers=workers)
    assert found.keys() == expected.keys()
    for place, rows in expected.items():
        assert torch.equal(found[place].ids, rows.ids)
        assert torch.equal(found[place].images, rows.images)
        assert torch.equal(found[place].labels, rows.labels)


def test_slot_i_of_step_s_reads_position_s_times_b_plus_i(table: Table) -> None:
    order, found = KeyedOrder(9, 60), cells_of(table, 1)
    for step in range(4):
        ids = torch.cat([found[step, index].ids for index in range(5)])
        assert torch.equal(ids, order.rows(step * 20, 20))
    rows = found[3, 2]
    assert torch.equal(rows.images, table.rows(rows.ids))
    assert torch.equal(rows.labels, table.labels[rows.ids])


def test_resumed_stream_continues_at_its_step(table: Table) -> None:
    whole, resumed = cells_of(table, 1), cells_of(table, 2, first_step=2)
    assert resumed.keys() == {place for place in whole if place[0] >= 2}
    assert all(torch.equal(rows.ids, whole[place].ids) for place, rows in resumed.items())


def test_flips_mirror_the_chosen_images_only() -> None:
    images = torch.arange(24.0).view(2, 1, 3, 4)
    flipped = flip_some(images, torch.tensor([0.49, 0.5]))
    assert torch.equal(flipped[0], images[0].flip(-1))
    assert torch.equal(flipped[1], images[1])
