"""Cells: the fixed-size pieces of a step's batch. A cell's result does not depend on the rank that computes it.

Every random stream of a cell is a function of ``(seed, stream, step, cell)``. No generator state is stored, and results
do not depend on the number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gfgw_prod.distributed.transfers import to_device


def derived_seed(seed: int, stream: str, *position: int) -> int:
    """63-bit seed: a hash of the run's seed, the stream's name and a position in the stream."""
    text = "/".join([str(seed), stream, *map(str, position)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def random_stream(seed: int, stream: str, *position: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Create the generator of the named stream on ``device``, at its start."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, stream, *position))


@contextmanager
def seeded_globally(seed: int, stream: str, *position: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators from the named stream inside the body, for initialisation and dropout."""
    device, number = torch.device(device), derived_seed(seed, stream, *position)
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # Not torch.manual_seed: without a GPU it queues a call, with its stack, that never comes.
        torch.default_generator.manual_seed(number)
        if on_gpu:
            torch.cuda.manual_seed(number)
        yield


@dataclass(frozen=True)
class Cell:
    """Cell ``index`` of optimisation step ``step``: rows ``index * size`` to ``(index + 1) * size`` of the batch."""

    seed: int
    step: int
    index: int
    size: int

    @property
    def slots(self) -> slice:
        """The cell's rows in the step's batch."""
        return slice(self.index * self.size, (self.index + 1) * self.size)

    def stream(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Create the cell's generator for one purpose."""
        return random_stream(self.seed, name, self.step, self.index, device=device)

    def normal(self, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Draw standard normal numbers ``(size, *shape)``, on the CPU, so that they are the same on every device."""
        return to_device(torch.randn((self.size, *shape), generator=self.stream(name)), device)

    def uniform(self, name: str) -> Tensor:
        """Draw uniform numbers ``(size,)`` in [0, 1), on the CPU, so that they are the same on every device."""
        return torch.rand(self.size, generator=self.stream(name))

    @contextmanager
    def dropout(self, device: torch.device) -> Iterator[None]:
        """Seed dropout masks inside the body from the cell's own stream."""
        with seeded_globally(self.seed, "dropout", self.step, self.index, device=device):
            yield


@dataclass(frozen=True)
class Turn:
    """One cell of one rank within a step.

    All ranks take equally many turns, so that they meet in the same collectives. A rank with too few cells repeats one
    with ``counts=False``; that turn adds nothing to the gradient.
    """

    cell: Cell
    counts: bool
    is_last: bool  # of the step

    @property
    def weight(self) -> float:
        """Factor of the cell's loss."""
        return 1.0 if self.counts else 0.0


@dataclass(frozen=True)
class CellAssignment:
    """Which rank computes which of a step's cells: rank ``r`` has ``turns_per_rank`` neighbours from ``r * turns`` on.

    The weights do not depend on the assignment. Neighbouring cells are siblings in the summation tree, so a rank can
    add most of its gradients before it sends any.
    """

    cells: int
    world_size: int

    @property
    def turns_per_rank(self) -> int:
        """Turns of every rank: ``ceil(cells / world_size)``."""
        return -(-self.cells // self.world_size)

    @property
    def idle_share(self) -> float:
        """Fraction of all turns that do not count."""
        return 1 - self.cells / (self.turns_per_rank * self.world_size)

    @cached_property
    def cells_by_rank(self) -> list[range]:
        """Cells of every rank; the last ranks may have fewer than the others, or none."""
        turns = self.turns_per_rank
        starts = range(0, turns * self.world_size, turns)
        return [range(min(start, self.cells), min(start + turns, self.cells)) for start in starts]

    def turns_of(self, seed: int, step: int, *, size: int, rank: int) -> list[Turn]:
        """List the rank's turns of one step, with cells of ``size`` images."""
        turns = self.turns_per_rank
        indices, last = range(rank * turns, (rank + 1) * turns), (rank + 1) * turns - 1
        return [Turn(Cell(seed, step, i % self.cells, size), i < self.cells, is_last=i == last) for i in indices]

    def in_cell_order(self, gathered: Tensor) -> Tensor:
        """Join all ranks' turns, ``(world_size, turns_per_rank, ...)``, in the order of cells: ``(cells, ...)``."""
        return gathered.flatten(0, 1)[: self.cells]
