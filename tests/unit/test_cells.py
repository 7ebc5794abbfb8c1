"""Cells: every cell counts once, and its random streams are a function of seed, name, step and cell."""

from itertools import product

import pytest
import torch

from gfgw_prod.distributed.cells import Cell, CellAssignment, Turn, derived_seed, random_stream, seeded_globally

CPU = torch.device("cpu")
WORLDS = [(cells, ranks) for cells in range(1, 10) for ranks in range(1, cells + 1)]


def turns_of(assignment: CellAssignment) -> list[list[Turn]]:
    return [assignment.turns_of(0, 3, size=4, rank=rank) for rank in range(assignment.world_size)]


@pytest.mark.parametrize(("cells", "world_size"), WORLDS)
def test_every_cell_counts_exactly_once(cells: int, world_size: int) -> None:
    assignment = CellAssignment(cells, world_size)
    ranks = turns_of(assignment)
    assert {len(turns) for turns in ranks} == {assignment.turns_per_rank}, "all ranks take part in every collective"
    by_rank = [turn for turns in ranks for turn in turns]
    assert [turn.cell.index for turn in by_rank if turn.counts] == list(range(cells))
    assert all(0 <= turn.cell.index < cells and turn.cell.step == 3 and turn.cell.size == 4 for turn in by_rank)
    assert assignment.idle_share == pytest.approx(sum(not turn.counts for turn in by_rank) / len(by_rank))


@pytest.mark.parametrize(("cells", "world_size"), WORLDS)
def test_gathered_turns_are_put_in_the_order_of_cells(cells: int, world_size: int) -> None:
    assignment = CellAssignment(cells, world_size)
    gathered = torch.tensor([[turn.cell.index for turn in turns] for turns in turns_of(assignment)])
    assert assignment.in_cell_order(gathered).tolist() == list(range(cells))


@pytest.mark.parametrize(("cells", "world_size"), WORLDS)
def test_ranks_hold_neighbouring_cells(cells: int, world_size: int) -> None:
    assignment = CellAssignment(cells, world_size)
    for rank, turns in enumerate(turns_of(assignment)):
        assert [turn.cell.index for turn in turns if turn.counts] == list(assignment.cells_by_rank[rank])


@pytest.mark.parametrize(("cells", "world_size"), WORLDS)
def test_idle_ranks_are_the_last_of_a_turn_and_every_rank_knows_the_last_turn(cells: int, world_size: int) -> None:
    ranks = turns_of(CellAssignment(cells, world_size))
    for number, turns in enumerate(zip(*ranks, strict=True)):
        live = sum(turn.counts for turn in turns)
        assert all(turn.counts == (rank < live) for rank, turn in enumerate(turns))
        assert all(turn.is_last == (number == len(ranks[0]) - 1) for turn in turns)
        assert all(turn.weight == float(turn.counts) for turn in turns)


def test_slots_of_the_cells_are_the_batch() -> None:
    slots = [range(12)[Cell(0, 0, index, 3).slots] for index in range(4)]
    assert [list(part) for part in slots] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_streams_differ_by_seed_name_step_and_cell() -> None:
    positions = list(product((0, 1), ("noise", "time"), (0, 1, 10), (0, 1, 10)))
    first = {float(Cell(seed, step, cell, 1).uniform(name)) for seed, name, step, cell in positions}
    assert len(first) == len(positions)


def test_neighbouring_positions_have_different_seeds() -> None:
    assert derived_seed(0, "a", 1, 23) != derived_seed(0, "a", 12, 3)
    assert derived_seed(1, "1", 1) != derived_seed(11, "", 1)


def test_streams_are_reproducible() -> None:
    cell = Cell(5, 7, 2, 6)
    assert torch.equal(cell.normal("noise", (1, 4, 4), CPU), Cell(5, 7, 2, 6).normal("noise", (1, 4, 4), CPU))
    assert torch.equal(cell.uniform("time"), cell.uniform("time"))


def test_streams_never_change() -> None:
    """Another value would change every run in progress."""
    assert derived_seed(0, "noise", 3, 1) == 7_491_294_907_676_062_191


def test_draws_have_their_shapes_and_distributions() -> None:
    normal, uniform = Cell(0, 0, 0, 4000).normal("noise", (2,), CPU), Cell(0, 0, 0, 4000).uniform("time")
    assert normal.shape == (4000, 2)
    assert abs(normal.mean()) < 0.05
    assert abs(normal.std() - 1) < 0.05
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.02


def test_seeds_are_in_the_range_of_torch_generators() -> None:
    seeds = [derived_seed(2**63 - 1, "noise", step) for step in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == 200


def test_draws_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    cell = Cell(0, 0, 0, 8)
    cell.normal("noise", (3,), CPU)
    cell.uniform("time")
    torch.rand(3, generator=random_stream(0, "order", 1))
    with seeded_globally(0, "weights"):
        torch.rand(10)
    with cell.dropout(CPU):
        torch.nn.functional.dropout(torch.ones(9))
    assert torch.equal(torch.get_rng_state(), before)


def test_global_generator_is_restored_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded_globally(0, "weights"):
        torch.rand(10).numel() // 0
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_masks_are_the_cells_own() -> None:
    def mask(cell: Cell) -> torch.Tensor:
        with cell.dropout(CPU):
            return torch.nn.functional.dropout(torch.ones(64))

    first = mask(Cell(0, 4, 1, 8))
    torch.rand(5)
    assert torch.equal(mask(Cell(0, 4, 1, 8)), first)
    assert not torch.equal(mask(Cell(0, 4, 2, 8)), first)
    assert not torch.equal(mask(Cell(0, 5, 1, 8)), first)
