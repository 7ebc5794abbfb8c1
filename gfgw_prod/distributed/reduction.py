"""Sums of cells' gradients along one fixed binary tree, the same for every number of ranks.

Floating-point addition is not associative, so the order of summation is part of the result. Leaf ``c`` of the tree is
the gradient of cell ``c``. For 6 cells:

    level 0   0   1   2   3   4   5
              └─┬─┘   └─┬─┘   └─┬─┘
    level 1    0-1     2-3     4-5
                └───┬───┘       │
    level 2        0-3          │
                    └─────┬─────┘
    total             0-3 + 4-5

A rank adds the nodes whose leaves are all its own, and sends the rest: of 3 ranks with 2 cells each, every rank sends
one node (0-1, 2-3 or 4-5); of 2 ranks with 3 cells each, rank 0 sends 0-1 and 2, and rank 1 sends 3 and 4-5.

A node crosses the wire by ``all_to_all``: every rank receives its own slice of all ranks' nodes and adds the slices up.
That is as many bytes as a ring reduce-scatter of one gradient for each node that a rank sends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from gfgw_prod.distributed.shards import Shards, local
from gfgw_prod.distributed.world import World


@dataclass
class _Node:
    """Sum of the ``2**level`` leaves from ``start`` on, where ``start`` is a multiple of ``2**level``."""

    start: int
    level: int
    sum: Tensor


class TreeSum:
    """Running sum over leaves pushed in order, from leaf ``first`` on, by a binary counter.

    Keeps at most ``log2(leaves) + 1`` partial sums, or ``2 log2(leaves)`` if ``first`` is not a multiple of a large
    enough power of two.
    """

    def __init__(self, first: int = 0) -> None:
        self._first = self._next = first
        self._nodes: list[_Node] = []

    def push(self, value: Tensor, level: int = 0, *, donate: bool = False) -> None:
        """Add the next leaf, or the sum of the next ``2**level`` leaves; if ``donate``, it may overwrite ``value``."""
        node = _Node(self._next, level, value)
        self._next += 1 << level
        while self._nodes and self._nodes[-1].level == node.level and not self._nodes[-1].start >> node.level & 1:
            left = self._nodes.pop()
            node = _Node(left.start, left.level + 1, left.sum.add_(node.sum))
        if node.sum is value and not donate:
            node.sum = value.clone()
        self._nodes.append(node)

    def push_nodes(self, nodes: Iterable[tuple[Tensor, int]]) -> None:
        """Add sums of leaves with their levels, in the order of leaves."""
        for value, level in nodes:
            self.push(value, level)

    def restricted(self, part: Callable[[Tensor], Tensor]) -> TreeSum:
        """Return a sum of the same leaves, with ``part`` of each partial sum copied from it."""
        copy = TreeSum(self._first)
        copy._next, copy._nodes = self._next, [_Node(node.start, node.level, part(node.sum)) for node in self._nodes]
        return copy

    def pop_nodes(self) -> list[Tensor]:
        """Return the partial sums, whose levels are ``node_levels`` of the leaves, and start over at ``first``."""
        nodes, self._nodes, self._next = self._nodes, [], self._first
        return [node.sum for node in nodes]

    def pop_total(self) -> Tensor:
        """Return the sum of all leaves, and start over at ``first``."""
        nodes = self.pop_nodes()
        total = nodes.pop()
        while nodes:
            total = nodes.pop().add_(total)
        return total


@cache
def node_levels(leaves: range) -> tuple[int, ...]:
    """Levels of the fewest tree nodes that cover neighbouring leaves exactly, from left to right."""
    found: list[int] = []
    start = leaves.start
    while start < leaves.stop:
        level = (leaves.stop - start).bit_length() - 1
        while start % (1 << level):
            level -= 1
        found.append(level)
        start += 1 << level
    return tuple(found)


def exchange_nodes(
    nodes: Sequence[Tensor],
    cells_by_rank: Sequence[range],
    like: Tensor,
    world: World,
    group: dist.ProcessGroup | None = None,
) -> list[tuple[Tensor, int]]:
    """Send every rank its slice of this rank's nodes. Collective over ``group``, or over all ranks.

    Makes as many ``all_to_all`` calls as the rank with the most nodes has. In each, a rank sends
    ``(ranks - 1) / ranks`` of a node's bytes.

    Args:
        nodes: this rank's, each flat, ``(n,)``, as ``TreeSum.pop_nodes`` returns them.
        like: tensor ``(n,)`` that gives the dtype and device of a node.

    Returns:
        This rank's slice, ``(ceil(n / ranks),)``, of every rank's nodes with their levels, in the order of cells.
    """
    levels_by_rank = [node_levels(cells) for cells in cells_by_rank]
    # All ranks must take part in every exchange. A rank with fewer nodes sends zeros, which nobody adds.
    padding = [torch.zeros_like(like)] * (max(map(len, levels_by_rank)) - len(nodes))
    received = [_exchange_slices(node, world, group) for node in (*nodes, *padding)]
    by_rank = enumerate(levels_by_rank)
    return [(node[rank], level) for rank, levels in by_rank for node, level in zip(received, levels, strict=False)]


def _exchange_slices(flat: Tensor, world: World, group: dist.ProcessGroup | None) -> Tensor:
    """Send slice ``i`` of ``flat (n,)`` to rank ``i``; return the slices received, ``(ranks, ceil(n / ranks))``."""
    ranks = world.world_size if group is None else group.size()
    if short := -len(flat) % ranks:
        flat = pad(flat, (0, short))
    received = torch.empty_like(flat)
    with world.traffic.waiting():
        dist.all_to_all_single(received, flat, group=group)
    return received.view(ranks, -1)


def gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """List ``.grad`` of the parameters that have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def pop_flat_gradient(parameters: Collection[Tensor]) -> Tensor:
    """Copy all ``.grad`` into one tensor ``(n,)``, in the order of the parameters, and drop them."""
    flat = torch.cat([gradient.flatten() for gradient in gradients(parameters)])
    for parameter in parameters:
        parameter.grad = None
    return flat


def set_gradients(parameters: Sequence[Tensor], flat: Tensor) -> None:
    """Set each ``.grad`` to its part of ``flat``."""
    for parameter, gradient in zip(parameters, split_like(flat, parameters), strict=True):
        parameter.grad = gradient


def gradient_norm(parameters: Iterable[Tensor], world: World, shards: Shards | None = None) -> Tensor:
    """L2 norm ``()`` of all gradients, with the same bits for replicated and for row-sharded parameters. Collective.

    Squares are summed per row first (a row is on one rank), then over all rows in one fixed order.

    Args:
        shards: how parameters are sharded, if they are. Their meshes may be those of a group that was left: torch has
            the layouts of results from a cache.
    """
    found = gradients(parameters)
    rows = _row_squares([local(gradient) for gradient in found])
    if shards is None:
        return torch.cat(rows).sum().sqrt()
    total = torch.cat([_in_place(each, len(gradient), shards) for each, gradient in zip(rows, found, strict=True)])
    # A row is zero on all ranks but one, and adding zeros is exact.
    return world.all_reduce_sum(total, shards.group).sum().sqrt()


def _row_squares(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums of the squares of each tensor's rows; rows of one length are added up at once, which is fewer launches."""
    by_length: dict[int, list[int]] = {}
    for index, tensor in enumerate(tensors):
        by_length.setdefault(math.prod(tensor.shape[1:]), []).append(index)
    found = list(tensors)
    for length, chosen in by_length.items():
        sums = torch.cat([tensors[index].reshape(-1, length) for index in chosen]).square_().sum(dim=1)
        for index, part in zip(chosen, sums.split([len(tensors[index]) for index in chosen]), strict=True):
            found[index] = part
    return found


def _in_place(own: Tensor, rows: int, shards: Shards) -> Tensor:
    """Values of this rank's rows among those of all rows, ``(rows,)``; zero for the rows of other ranks."""
    start = min(-(-rows // shards.count) * shards.own, rows)
    return pad(own, (start, rows - start - len(own)))


def scale_gradients(parameters: Iterable[Tensor], factor: Tensor | float) -> None:
    """Multiply every gradient by a number, in place."""
    torch._foreach_mul_([local(gradient) for gradient in gradients(parameters)], factor)


def split_like(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Split a flat tensor into views with the parameters' shapes; elements beyond them are padding."""
    counts = [parameter.numel() for parameter in parameters]
    pieces = flat[: sum(counts)].split(counts)
    return [piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)]
