"""The feature bank: rows by global id, encoded alike by any number of ranks."""

import pytest
import torch
from torch import Tensor, nn

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank import FeatureBank


class OfItsBlock(nn.Module):
    """Features that depend on every image of the block they are encoded with."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)
        return rows - rows.mean(dim=0)


def encoded(table: Table, rank: int, world_size: int, block_rows: int = 8) -> FeatureBank:
    bank = FeatureBank(len(table), 16, World(rank, world_size, torch.device("cpu")))
    bank.encode(table, OfItsBlock(), block_rows, on_block=lambda rows: None)
    return bank


@pytest.mark.parametrize("world_size", [2, 3, 7, 16, 60, 64])
def test_rows_are_the_same_bits_whoever_encodes_them(table: Table, world_size: int) -> None:
    shards = [encoded(table, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat([shard.local for shard in shards]), encoded(table, 0, 1).local)
    assert [shard.start for shard in shards[1:]] == [shard.end for shard in shards[:-1]]


@pytest.mark.parametrize("world_size", [1, 3, 7, 64])
def test_shards_are_those_of_torch_chunk(table: Table, world_size: int) -> None:
    chunks = torch.arange(len(table)).chunk(world_size)
    ours = [FeatureBank(len(table), 1, World(r, world_size, torch.device("cpu"))) for r in range(world_size)]
    assert [bank.end - bank.start for bank in ours[: len(chunks)]] == [len(chunk) for chunk in chunks]
    assert all(len(bank.local) == 0 for bank in ours[len(chunks) :])


def test_every_block_is_announced(table: Table, alone: World) -> None:
    done: list[int] = []
    FeatureBank(60, 16, alone).encode(table, OfItsBlock(), 8, on_block=done.append)
    assert done == [8, 16, 24, 32, 40, 48, 56, 60]


def test_rows_come_in_the_order_asked_for(table: Table) -> None:
    bank, ids = encoded(table, 0, 1), torch.tensor([59, 0, 7, 7])
    assert torch.equal(bank.rows(ids), bank.local[ids])


def test_whole_is_all_rows_and_follows_a_new_encoding(table: Table) -> None:
    bank = encoded(table, 0, 1)
    assert torch.equal(bank.whole(), bank.local)
    bank.encode(table, OfItsBlock(), 60, on_block=lambda rows: None)
    assert torch.equal(bank.whole(), bank.local)
    assert not torch.equal(bank.whole(), encoded(table, 0, 1).whole())
