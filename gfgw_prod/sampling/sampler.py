"""Samples whose bits depend on weights, seed, number and class alone: not on how many are drawn at once, or by whom.

A network's last bits depend on the size of its batch. So it always sees ``CELL`` images, whatever is asked for, and
every image has noise of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from gfgw_prod.distributed.cells import random_stream
from gfgw_prod.distributed.world import World
from gfgw_prod.generator.precondition import interpolate

CELL = 32  # images that go through a network together
LabelsOf = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Turn:
    """One turn of a rank at numbered images: it makes ``size`` of them from ``start`` on, in whole cells.

    All ranks make equally many, so that weights can be gathered among them. Of what they make together, the first
    ``count`` are wanted: images ``first`` to ``first + count``.
    """

    first: int
    count: int
    start: int
    size: int

    def gathered(self, mine: Tensor, world: World) -> Tensor:
        """What all ranks have made, ``(size, ...)`` each, in order: ``(count, ...)``. Collective."""
        return world.all_gather(mine).flatten(0, 1)[: self.count]


def turns(count: int, block: int, world: World) -> Iterator[Turn]:
    """Turns that make ``count`` images in blocks of ``block``, a multiple of ``CELL``, one block a rank and turn."""
    for first in range(0, count, block * world.world_size):
        left = count - first
        size = min(block, -(-left // CELL) * CELL)
        yield Turn(first, min(left, block * world.world_size), first + world.rank * block, size)


def sampling_times(steps: int, least: float = 0.0) -> tuple[float, ...]:
    """Where a sampler of so many steps denoises: evenly spread from 1 down, above ``least``."""
    return tuple(1 - (1 - least) * step / steps for step in range(steps))


class Sampler:
    """Draws images of a generator by number.

    With several times it is the multi-step sampler of consistency models (Song et al. 2023, algorithm 1): predict clean
    images, mix them with fresh noise to the next time, predict again.

    Args:
        generator: called as ``generator(x_t, t, labels)``.
        image_shape: ``(c, h, w)``.
        labels_of: class ids ``(n,)`` by image number ``(n,)``.
        stream: name of the noise: image ``i`` begins with that of ``(seed, stream, i)``, and is mixed with that of
            ``(seed, stream, i, k)`` before prediction ``k``.
        times: in (0, 1], descending, the first 1.
        autocast: around every prediction.
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
        times: Sequence[float] = (1.0,),
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ):
        self._generator, self._shape, self._labels_of = generator.eval(), image_shape, labels_of
        self._seed, self._stream, self._device, self._times = seed, stream, device, tuple(times)
        self._autocast = autocast

    @torch.no_grad()
    def images(self, start: int, size: int) -> Tensor:
        """Images ``start`` to ``start + size``, ``(size, c, h, w)`` in [-1, 1]; whole cells, the size a multiple."""
        return torch.cat([self._cell(range(first, first + CELL)) for first in range(start, start + size, CELL)])

    def _cell(self, numbers: range) -> Tensor:
        labels = self._labels_of(torch.tensor(numbers)).to(self._device)
        images = self._predicted(self._noise(numbers), self._times[0], labels)
        for turn, time in enumerate(self._times[1:], start=1):
            mixed = interpolate(images, self._noise(numbers, turn), images.new_full((len(images),), time))
            images = self._predicted(mixed, time, labels)
        return images

    def _noise(self, numbers: range, *turn: int) -> Tensor:
        """Drawn on the CPU, so that every device sees the same."""
        streams = (random_stream(self._seed, self._stream, number, *turn) for number in numbers)
        return torch.stack([torch.randn(self._shape, generator=stream) for stream in streams]).to(self._device)

    def _predicted(self, x_t: Tensor, time: float, labels: Tensor) -> Tensor:
        with self._autocast():
            images: Tensor = self._generator(x_t, x_t.new_full((len(x_t),), time), labels)
        return images.float().clamp(-1, 1)


def in_turn(classes: Sequence[int]) -> LabelsOf:
    """Class ids that take turns: image ``i`` has class ``classes[i mod len(classes)]``."""
    table = torch.tensor(list(classes) or [0])
    return lambda numbers: table[numbers % len(table)]
