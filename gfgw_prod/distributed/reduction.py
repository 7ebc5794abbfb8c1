"""Sums of cells' gradients along one fixed binary tree, whatever the number of ranks.

Floating-point addition is not associative, so the order of summation is part of the result. Cells are added in order of
their index by a binary counter: leaf 2k with leaf 2k+1, then pairs of pairs. Ranks exchange nodes of the tree by
``all_to_all``, which moves as many bytes as a ring reduce-scatter, and each adds up its own slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from gfgw_prod.distributed.shards import local
from gfgw_prod.distributed.world import World


@dataclass
class _Node:
    """The sum of the ``2**level`` leaves from ``start`` on, a multiple of their number."""

    start: int
    level: int
    sum: Tensor


class TreeSum:
    """A running sum over leaves given in order, with at most ``log2(leaves) + 1`` partial sums alive.

    Args:
        first: index of the first leaf among all; partial sums are nodes of the tree over all leaves, at most
            ``2 log2(leaves)`` where the first is no multiple of a power of two.
    """

    def __init__(self, first: int = 0) -> None:
        self._first = self._next = first
        self._nodes: list[_Node] = []

    def push(self, value: Tensor, level: int = 0, *, give: bool = False) -> None:
        """Adds the next leaf, or the sum of the next ``2**level``; copied where it is kept, unless it is given away."""
        node = _Node(self._next, level, value)
        self._next += 1 << level
        while self._nodes and self._nodes[-1].level == node.level and not self._nodes[-1].start >> node.level & 1:
            left = self._nodes.pop()
            node = _Node(left.start, left.level + 1, left.sum.add_(node.sum))
        if node.sum is value and not give:
            node.sum = value.clone()
        self._nodes.append(node)

    def take(self) -> list[Tensor]:
        """The partial sums so far, of the leaves that ``levels`` says; the next push starts anew."""
        nodes, self._nodes, self._next = self._nodes, [], self._first
        return [node.sum for node in nodes]

    def pop(self) -> Tensor:
        """The sum of all leaves so far; the next push starts a new one."""
        nodes = self.take()
        total = nodes.pop()
        while nodes:
            total = nodes.pop().add_(total)
        return total


@cache
def levels(leaves: range) -> tuple[int, ...]:
    """Levels of the fewest nodes of the tree that hold neighbouring leaves, in order."""
    found: list[int] = []
    start = leaves.start
    while start < leaves.stop:
        level = (leaves.stop - start).bit_length() - 1
        while start % (1 << level):
            level -= 1
        found.append(level)
        start += 1 << level
    return tuple(found)


def exchange_chunks(flat: Tensor, world: World, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sends chunk ``i`` of ``flat`` to rank ``i`` of the group; returns this rank's chunk of each, ``(ranks, chunk)``.

    What the number of ranks does not divide is padded with zeros. Without a group, among all ranks.
    """
    ranks = world.world_size if group is None else group.size()
    if short := -len(flat) % ranks:
        flat = torch.nn.functional.pad(flat, (0, short))
    received = torch.empty_like(flat)
    with world.traffic.waiting():
        dist.all_to_all_single(received, flat, group=group)
    return received.view(ranks, -1)


def exchange_nodes(
    nodes: Sequence[Tensor],
    held: Sequence[range],
    gradient: Tensor,
    world: World,
    group: dist.ProcessGroup | None = None,
) -> list[tuple[Tensor, int]]:
    """This rank's slice of all ranks' nodes, each with its level, in the order of leaves. Collective.

    Args:
        nodes: this rank's, as ``levels`` says of the leaves it holds; each is flat.
        held: leaves by rank of the group, neighbours within a rank and from rank to rank.
        gradient: flat, shaped as a node.
        group: none is all ranks.
    """
    by_rank = [levels(leaves) for leaves in held]
    # A rank with fewer nodes than the others sends zeros, which nobody adds.
    sent = [*nodes, *[torch.zeros_like(gradient)] * (max(map(len, by_rank)) - len(nodes))]
    received = [exchange_chunks(node, world, group) for node in sent]
    return [
        (node[rank], level) for rank, found in enumerate(by_rank) for node, level in zip(received, found, strict=False)
    ]


def gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """What stands in ``.grad``, of those that have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def gradient_norm(parameters: Iterable[Tensor], world: World) -> Tensor:
    """The L2 norm of all gradients, the same bits for replicated and for row-sharded parameters.

    Squares are summed per row first (a row lies on one rank alone), then over all rows in one fixed order.
    """
    row_sums: list[Tensor] = []
    sharded = None
    for gradient in gradients(parameters):
        if isinstance(gradient, DTensor):
            sharded = gradient.device_mesh.get_group()
            row_sums.append(_placed_row_sums(gradient))
        else:
            row_sums.append(_row_sums(gradient))
    total = torch.cat(row_sums)
    if sharded is not None:
        total = world.all_reduce_sum(total, sharded)  # every row is non-zero on one rank only: adding zeros is exact
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
    for gradient in gradients(parameters):
        local(gradient).mul_(factor)


def split_like(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Consecutive pieces of a flat tensor in the shapes of the parameters; what is left over is padding."""
    pieces: list[Any] = []
    offset = 0
    for parameter in parameters:
        pieces.append(flat[offset : offset + parameter.numel()].view(parameter.shape))
        offset += parameter.numel()
    return pieces
