"""Tables with one row per image of the data set, spread over ranks in whole blocks and addressed by global row id.

A block is the same rows whatever the number of ranks, so work done block by block gives the same bits on any of them.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from gfgw_prod.distributed.world import World

SMALLEST_BLOCK = 512  # rows
MOST_BLOCKS = 32


def rows_per_block(total: int) -> int:
    """Rows per block of a table of ``total`` rows: a power of two, at least 512, that makes at most 32 blocks."""
    return max(SMALLEST_BLOCK, 1 << (-(-total // MOST_BLOCKS) - 1).bit_length())


class RowTable:
    """``N`` rows of one shape; this rank holds ``local``, global rows ``start`` to ``end``, in whole blocks."""

    def __init__(self, total: int, shape: tuple[int, ...], world: World, dtype: torch.dtype = torch.float32):
        self.total, self.world = total, world
        self.block_rows = rows_per_block(total)
        blocks = -(-total // self.block_rows)
        self._blocks_per_rank = -(-blocks // world.world_size)
        self._per_rank = self._blocks_per_rank * self.block_rows
        self.start = min(self._per_rank * world.rank, total)
        self.end = min(self.start + self._per_rank, total)
        held = -(-(self.end - self.start) // self.block_rows)
        self._blocks = blocks
        self._storage = torch.zeros(held, self.block_rows, *shape, dtype=dtype, device=world.device)
        self.local = self._storage.flatten(0, 1)[: self.end - self.start]

    def state(self) -> Tensor:
        """All rows as ``(blocks, block_rows, ...)``, the last block padded; a DTensor over ranks. Shares memory."""
        if self.world.world_size == 1:
            return self._storage
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh(self.world.device.type, (dist.get_world_size(),))
        shape = torch.Size((self._blocks, *self._storage.shape[1:]))
        return DTensor.from_local(
            self._storage, mesh, [Shard(0)], run_check=False, shape=shape, stride=self._storage.stride()
        )

    def rows(self, ids: Tensor) -> Tensor:
        """Rows by global id on every rank, ``(m,)`` -> ``(m, ...)``. Collective: all ranks ask for the same ids."""
        ids = ids.to(self.local.device)
        if self.world.world_size == 1:
            return self.local[ids]
        mine = (ids >= self.start) & (ids < self.end)
        rows = self.local.new_zeros(len(ids), *self.local.shape[1:])
        rows[mine] = self.local[ids[mine] - self.start]
        bits = torch.int32 if rows.element_size() == 4 else torch.int64  # a sum with zeros, and -0.0 stays -0.0
        return self.world.sum(rows.view(bits)).view(rows.dtype)

    def write(self, ids: Tensor, values: Tensor) -> None:
        """Sets rows by global id; every rank is given all of them and keeps its own. Ids must not repeat."""
        ids = ids.to(self.local.device)
        mine = (ids >= self.start) & (ids < self.end)
        self.local[ids[mine] - self.start] = values[mine].to(self.local.dtype)
