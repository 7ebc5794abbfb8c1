"""Samples that are the same bits for any batch size and world size.

Only weights, seed, image number and class determine an image. The last bits of a network's output depend on its batch
size, so it always sees ``CELL`` images; and every image has a noise stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from gfgw_prod.distributed.cells import random_stream
from gfgw_prod.distributed.world import World

CELL = 32  # images in one pass through a network
LabelsOf = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """Images that all ranks make at a time.

    This rank makes images ``start`` to ``start + size``, in whole cells. All ranks make equally many, because sharded
    weights are gathered by collectives. Together they make images ``first`` to ``first + count``, and perhaps a few
    more that ``gather`` drops.
    """

    first: int
    count: int
    start: int
    size: int

    def gather(self, mine: Tensor, world: World) -> Tensor:
        """Gather ``(size, ...)`` of every rank, in order, as ``(count, ...)``. Collective."""
        return world.all_gather(mine).flatten(0, 1)[: self.count]


def batches(count: int, block: int, world: World) -> Iterator[Batch]:
    """Split ``count`` images into batches of at most ``block`` images per rank; ``block`` is a multiple of ``CELL``."""
    for first in range(0, count, block * world.world_size):
        left = count - first
        size = min(block, -(-left // CELL) * CELL)
        yield Batch(first, min(left, block * world.world_size), first + world.rank * block, size)


class Sampler:
    """Draws numbered one-step samples ``G(z, 1)``.

    Args:
        generator: called as ``generator(noise, t, labels)``.
        labels_of: maps image numbers ``(n,)`` to class ids ``(n,)``.
        stream: name of the noise stream. Image ``i`` has the noise ``(seed, stream, i)``.
        autocast: context of every pass.
    """

    def __init__(
        self,
        generator: torch.nn.Module,
        image_shape: tuple[int, int, int],
        labels_of: LabelsOf,
        *,
        seed: int,
        stream: str,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ):
        self._generator, self._shape, self._labels_of = generator.eval(), image_shape, labels_of
        self._seed, self._stream, self._device, self._autocast = seed, stream, device, autocast

    @torch.no_grad()
    def images(self, start: int, size: int) -> Tensor:
        """Images ``start`` to ``start + size``, ``(size, c, h, w)`` in [-1, 1]; ``size`` is a multiple of ``CELL``."""
        return torch.cat([self._cell(range(first, first + CELL)) for first in range(start, start + size, CELL)])

    def _cell(self, numbers: range) -> Tensor:
        labels = self._labels_of(torch.tensor(numbers)).to(self._device)
        # Noise is drawn on the CPU, so that it is the same for every device.
        streams = (random_stream(self._seed, self._stream, number) for number in numbers)
        noise = torch.stack([torch.randn(self._shape, generator=stream) for stream in streams]).to(self._device)
        with self._autocast():
            images: Tensor = self._generator(noise, noise.new_ones(len(noise)), labels)
        return images.float().clamp(-1, 1)


def cycle_classes(classes: Sequence[int]) -> LabelsOf:
    """Give image ``i`` class ``classes[i mod len(classes)]``; class 0 if there are none."""
    table = torch.tensor(list(classes) or [0])
    return lambda numbers: table[numbers % len(table)]
