"""Sums of cells' gradients along one fixed binary tree, whatever the number of ranks.

Floating-point addition is not associative, so the order of summation is part of the result. Cells are added in order of
their index by a binary counter: leaf 2k with leaf 2k+1, then pairs of pairs. Each rank holds its own slice of the sums;
one ``all_to_all`` per round moves as many bytes as a ring reduce-scatter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from gfgw_prod.distributed.shards import local


class TreeSum:
    """A running sum over leaves given in order, with at most ``log2(leaves) + 1`` partial sums alive."""

    def __init__(self) -> None:
        self._partials: dict[int, Tensor] = {}

    def push(self, leaf: Tensor) -> None:
        """Adds the next leaf; the tensor is copied where it is kept."""
        level, value = 0, leaf
        while level in self._partials:
            value = self._partials.pop(level).add_(value)
            level += 1
        self._partials[level] = leaf.clone() if value is leaf else value

    def pop(self) -> Tensor:
        """The sum of all leaves so far; the next push starts a new one."""
        levels = sorted(self._partials)
        total = self._partials.pop(levels[0])
        for level in levels[1:]:
            total = self._partials.pop(level).add_(total)
        return total


def exchange_chunks(flat: Tensor, world_size: int) -> Tensor:
    """Sends chunk ``i`` of ``flat`` to rank ``i``; returns this rank's chunk of every rank, ``(world_size, chunk)``."""
    if world_size == 1:
        return flat[None]
    received = torch.empty_like(flat)
    dist.all_to_all_single(received, flat)
    return received.view(world_size, -1)


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The L2 norm of all gradients, the same bits for replicated and for row-sharded parameters.

    Squares are summed per row first (a row lies on one rank alone), then over all rows in one fixed order.
    """
    row_sums: list[Tensor] = []
    sharded = False
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if isinstance(gradient, DTensor):
            sharded = True
            row_sums.append(_placed_row_sums(gradient))
        else:
            row_sums.append(_row_sums(gradient))
    total = torch.cat(row_sums)
    if sharded:
        dist.all_reduce(total)  # every row is non-zero on one rank only: adding zeros is exact
    return total.sum().sqrt()


def _row_sums(gradient: Tensor) -> Tensor:
    return gradient.square().reshape(len(gradient), -1).sum(dim=1)


def _placed_row_sums(gradient: DTensor) -> Tensor:
    """Row sums of a tensor sharded by rows, zero where the rows are another rank's."""
    mine = local(gradient)
    rows = gradient.shape[0]
    result = mine.new_zeros(rows)
    per_rank = -(-rows // gradient.device_mesh.size())
    start = min(per_rank * gradient.device_mesh.get_local_rank(), rows)
    if len(mine):
        result[start : start + len(mine)] = _row_sums(mine)
    return result


def scale_gradients(parameters: Iterable[Tensor], factor: Tensor) -> None:
    """Multiplies every gradient by a scalar tensor."""
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).mul_(factor)


def split_like(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Consecutive pieces of a flat tensor in the shapes of the parameters; what is left over is padding."""
    pieces: list[Any] = []
    offset = 0
    for parameter in parameters:
        pieces.append(flat[offset : offset + parameter.numel()].view(parameter.shape))
        offset += parameter.numel()
    return pieces
