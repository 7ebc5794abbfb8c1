"""The feature bank: rows by global id, with the same bits for any number of ranks."""

import pytest
import torch
from torch import Tensor, nn

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.row_table import RowTable, rows_per_block
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank import FeatureBank


class BlockDependent(nn.Module):
    """Features that depend on every image of the block they are encoded with."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)
        return rows - rows.mean(dim=0)


def encoded(table: Table, rank: int, world_size: int, block_rows: int = 8) -> FeatureBank:
    bank = FeatureBank(len(table), 16, World(rank, world_size, torch.device("cpu")))
    bank.encode(table, BlockDependent(), block_rows, on_block=lambda rows: None)
    return bank


@pytest.mark.parametrize("world_size", [2, 3, 7, 16, 60, 64])
def test_rows_are_the_same_bits_for_any_number_of_ranks(table: Table, world_size: int) -> None:
    shards = [encoded(table, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat([shard.local for shard in shards]), encoded(table, 0, 1).local)
    assert [shard.start for shard in shards[1:]] == [shard.end for shard in shards[:-1]]


@pytest.mark.parametrize("total", [60, 1797, 50_000, 1_281_167])
@pytest.mark.parametrize("world_size", [1, 3, 4, 64])
def test_shards_are_whole_blocks_split_as_torch_chunk_does(total: int, world_size: int) -> None:
    tables = [RowTable(total, (), World(rank, world_size, torch.device("cpu"))) for rank in range(world_size)]
    blocks = torch.arange(0, total, tables[0].block_rows).chunk(world_size)
    assert [table.start for table in tables[: len(blocks)]] == [int(chunk[0]) for chunk in blocks]
    assert sum(len(table.local) for table in tables) == total
    assert all(len(table.local) == 0 for table in tables[len(blocks) :])


@pytest.mark.parametrize(("total", "rows"), [(1, 512), (16_384, 512), (16_385, 1024), (50_000, 2048)])
def test_blocks_are_powers_of_two_and_at_most_32(total: int, rows: int) -> None:
    assert rows_per_block(total) == rows


def test_written_rows_are_read_back_and_others_stay(alone: World) -> None:
    rows = RowTable(9, (2,), alone)
    rows.write(torch.tensor([7, 1]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert rows.rows(torch.tensor([1, 2, 7])).tolist() == [[3, 4], [0, 0], [1, 2]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_rows_filled_in_pieces_are_each_kept_by_one_rank(world_size: int) -> None:
    values = torch.randn(1797, 3, generator=torch.Generator().manual_seed(0))
    tables = [RowTable(1797, (3,), World(rank, world_size, torch.device("cpu"))) for rank in range(world_size)]
    for first, piece in zip(range(0, 1797, 700), values.split(700), strict=True):
        for table in tables:
            table.fill(first, piece)
    assert torch.equal(torch.cat([table.local for table in tables]), values)
    assert all(len(table.local) <= table.most_local for table in tables)


def test_every_block_is_reported(table: Table, alone: World) -> None:
    done: list[int] = []
    FeatureBank(60, 16, alone).encode(table, BlockDependent(), 8, on_block=done.append)
    assert done == [8, 16, 24, 32, 40, 48, 56, 60]


def test_rows_come_in_the_order_asked_for(table: Table) -> None:
    bank, ids = encoded(table, 0, 1), torch.tensor([59, 0, 7, 7])
    assert torch.equal(bank.rows(ids), bank.local[ids])
