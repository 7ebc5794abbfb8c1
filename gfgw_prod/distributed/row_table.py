"""Tables with one row per image of the data set, sharded over ranks in whole blocks, addressed by global row id.

A block holds the same rows for every number of ranks, so work done block by block gives the same bits on all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from gfgw_prod.distributed.transfers import to_device
from gfgw_prod.distributed.world import World

SMALLEST_BLOCK = 512  # rows
MOST_BLOCKS = 32


def rows_per_block(total: int) -> int:
    """Smallest power of two, at least 512, that divides ``total`` rows into at most 32 blocks."""
    return max(SMALLEST_BLOCK, 1 << (-(-total // MOST_BLOCKS) - 1).bit_length())


class RowTable:
    """Table ``(total, *shape)`` sharded by rows, kept on ``device``, by default the world's.

    Attributes:
        local: this rank's rows ``start`` to ``end``, ``(end - start, *shape)``; whole blocks, and maybe none.
        most_local: the most rows of any rank, with a padded last block.
        whole: a copy of all rows, ``(total, *shape)``, if this rank keeps one for a rank that replaces a lost one.
    """

    def __init__(
        self,
        total: int,
        shape: tuple[int, ...],
        world: World,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ):
        self.total, self.world = total, world
        self.block_rows = rows_per_block(total)
        blocks = -(-total // self.block_rows)
        self.most_local = -(-blocks // world.world_size) * self.block_rows
        self.start = min(self.most_local * world.rank, total)
        self.end = min(self.start + self.most_local, total)
        held = -(-(self.end - self.start) // self.block_rows)
        self._blocks = blocks
        self._storage = torch.zeros(held, self.block_rows, *shape, dtype=dtype, device=device or world.device)
        self.local = self._storage.flatten(0, 1)[: self.end - self.start]
        self.whole: Tensor | None = None

    def state(self) -> Tensor:
        """View all rows as ``(blocks, block_rows, ...)``, the last block padded; a DTensor on several ranks."""
        if self.world.world_size == 1:
            return self._storage
        own, shape = self._storage, torch.Size((self._blocks, *self._storage.shape[1:]))
        return DTensor.from_local(own, self.world.mesh, [Shard(0)], run_check=False, shape=shape, stride=own.stride())

    def rows(self, ids: Tensor) -> Tensor:
        """Look up rows by global id, ``(m,)`` -> ``(m, ...)``, on the world's device.

        Collective: all ranks pass the same ids. All-reduces the rows' bytes.
        """
        ids = to_device(ids, self.local.device)
        if self.world.world_size == 1:
            return self.local[ids].to(self.world.device)
        # Select with torch.where: indexing with a mask makes the host wait for the GPU.
        mine, places = self._places(ids)
        rows = self.local.new_zeros(len(ids), *self.local.shape[1:])
        if len(self.local):
            mine = mine.view(-1, *[1] * (rows.dim() - 1))
            rows = torch.where(mine, self.local[places.clamp_max(len(self.local) - 1)], rows)
        bits = torch.int32 if rows.element_size() == 4 else torch.int64  # summed as bits, so that -0.0 stays -0.0
        return self.world.all_reduce_sum(rows.view(bits).to(self.world.device)).view(rows.dtype)

    def fill(self, first: int, values: Tensor) -> None:
        """Set rows from ``first`` on. Every rank passes all values and keeps those of its own rows."""
        start, end = max(first, self.start), min(first + len(values), self.end)
        if start < end:
            self.local[start - self.start : end - self.start] = values[start - first : end - first]

    def write(self, ids: Tensor, values: Tensor) -> None:
        """Set rows by global id. Every rank passes all values; equal ids must have equal values."""
        if self.whole is not None:
            self.whole[ids.to(self.whole.device)] = values.to(self.whole)
        _, places = self._places(to_device(ids, self.local.device))
        rows = torch.cat([self.local, self.local.new_zeros(1, *self.local.shape[1:])])  # the last takes other ranks'
        rows[places] = values.to(rows.dtype)
        self.local.copy_(rows[:-1])

    def gathered(self, local: Tensor) -> Tensor:
        """All rows ``(total, ...)`` from each rank's own. Collective."""
        padded = local.new_zeros(self.most_local, *local.shape[1:])
        padded[: len(local)] = local
        return self.world.all_gather(padded).flatten(0, 1)[: self.total]

    def _places(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Mask of this rank's ids, and their indices in ``local``; other ranks' ids get the index past the end."""
        mine = (ids >= self.start) & (ids < self.end)
        return mine, torch.where(mine, ids - self.start, len(self.local))
