"""The columns of a coupling, rows of the bank: fixed blocks, on one rank or spread over ranks, and sums over all.

A block is the same columns for every number of ranks, and the results of blocks are added in fixed point
(``distributed.exact_sum``): potentials and targets are bitwise the same for every number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gfgw_prod.distributed.exact_sum import exact_sum
from gfgw_prod.distributed.world import World


@dataclass(frozen=True)
class Columns:
    """This rank's columns: unit rows ``(m, d)``, masses ``(m,)`` and optional class ids ``(m,)``.

    Without a ``world`` these are all columns, replicated on every rank. With one, they are this rank's share: whole
    blocks of ``block_rows`` columns from global id ``first`` on.
    """

    features: Tensor
    mass: Tensor
    labels: Tensor | None = None
    block_rows: int = 8192
    first: int = 0
    world: World | None = None

    @property
    def blocks(self) -> list[slice]:
        """Each block as a slice of this rank's columns."""
        size, count = self.block_rows, len(self.features)
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def sum(self, parts: list[Tensor], like: Tensor, bits: int, factor: Tensor | None = None) -> Tensor:
        """Sum of parts by block, shaped as ``like``, times ``factor``, of all columns; ``bits`` as in ``exact_sum``."""
        if self.world is not None:
            return exact_sum(parts, like, self.world, bits, factor)
        total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)
        return total if factor is None else total * factor

    def max(self, parts: list[Tensor], like: Tensor) -> Tensor:
        """Elementwise largest of parts by block, shaped as ``like``, over all columns."""
        if len(parts) == 1:
            largest = parts[0]
        else:
            largest = torch.stack(parts).amax(dim=0) if parts else torch.full_like(like, -torch.inf)
        return largest if self.world is None else self.world.all_reduce_max(largest)

    def argmax(self, scores: Iterable[tuple[slice, Tensor]], like: Tensor) -> Tensor:
        """The column with each row's largest score, by global id, ``(n,)``; the lowest id of several. Collective.

        Args:
            scores: blocks of this rank's columns, with ``(n, b)`` each.
            like: tensor ``(n,)`` with the dtype and device of the scores.
        """
        best = torch.full_like(like, -torch.inf)
        ids = torch.zeros(len(like), dtype=torch.int64, device=like.device)
        for block, values in scores:
            value, column = values.max(dim=1)
            better = value > best
            best = torch.where(better, value, best)
            ids = torch.where(better, self.first + block.start + column, ids)
        if self.world is None:
            return ids
        rank = self.world.all_gather(best).argmax(dim=0)  # (n,) the rank with each row's best column
        return self.world.all_gather(ids).gather(0, rank[None])[0]


@dataclass(frozen=True)
class Logits:
    """Minus the linearised cost over ε, block by block; -inf between a row and a column of different classes."""

    columns: Columns
    row_labels: Tensor | None  # (n,)
    write: Callable[[slice, Tensor], object]  # writes a block's logits into its second argument, (n, b)

    def into(self, block: slice, out: Tensor) -> None:
        """Write a block's logits into ``out (n, b)``."""
        self.write(block, out)
        if self.row_labels is not None and self.columns.labels is not None:
            out.masked_fill_(self.row_labels[:, None] != self.columns.labels[block][None, :], -torch.inf)
