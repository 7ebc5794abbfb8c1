"""Cells: the unit of work and of randomness, the same wherever they run.

A step's batch is ``K`` cells of fixed size. Every random stream of a cell is a function of
``(seed, stream, step, cell)``, so no generator state is ever stored and the number of ranks cannot matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gfgw_prod.settings.running import DistributedSettings


def derived_seed(seed: int, stream: str, *position: int) -> int:
    """A 63-bit seed, a hash of the run's seed, the stream's name and a position in it."""
    text = "/".join([str(seed), stream, *map(str, position)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def random_stream(seed: int, stream: str, *position: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on ``device`` at the start of the named stream."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, stream, *position))


@contextmanager
def seeded_globally(seed: int, stream: str, *position: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Runs its body, which may draw from torch's global generator (initialisation, dropout), on the named stream."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derived_seed(seed, stream, *position))
        yield


@dataclass(frozen=True)
class Cell:
    """Cell ``index`` of optimisation step ``step``: slots ``index * size`` to ``(index + 1) * size``."""

    seed: int
    step: int
    index: int
    size: int

    @property
    def slots(self) -> slice:
        """Where the cell's rows stand among the step's batch."""
        return slice(self.index * self.size, (self.index + 1) * self.size)

    def stream(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """The cell's generator for one purpose."""
        return random_stream(self.seed, name, self.step, self.index, device=device)

    def normal(self, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Standard normal numbers ``(size, *shape)``, drawn on the CPU so that every device sees the same."""
        return torch.randn((self.size, *shape), generator=self.stream(name)).to(device)

    def uniform(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers ``(size,)`` in [0, 1), drawn on the CPU so that every device sees the same."""
        return torch.rand(self.size, generator=self.stream(name)).to(device)

    @contextmanager
    def dropout(self, device: torch.device) -> Iterator[None]:
        """Makes dropout masks inside the body the cell's own."""
        with seeded_globally(self.seed, "dropout", self.step, self.index, device=device):
            yield


@dataclass(frozen=True)
class Turn:
    """One turn of a rank. A short rank repeats a cell with ``counts=False``: it takes part, and adds nothing."""

    cell: Cell
    counts: bool
    is_last: bool
    first: int  # cell of rank 0 in this turn

    @property
    def weight(self) -> float:
        """Factor of the cell's loss."""
        return 1.0 if self.counts else 0.0

    def held(self, rank: int, cells: int) -> range:
        """The cell that a rank runs in this turn, or none, where a turn's cells are neighbours."""
        start = self.first + rank
        return range(min(start, cells), min(start + 1, cells))


@dataclass(frozen=True)
class Spread:
    """Which rank runs which of a step's cells. Weights do not depend on it; what crosses the wire does.

    ``contiguous`` gives rank ``r`` cells from ``r * turns`` on, so that sums of neighbouring cells are formed where
    they are. Otherwise turn ``j`` of rank ``r`` runs cell ``j * world_size + r``: every turn's cells are neighbours
    across ranks, and can be added and let go turn by turn.
    """

    cells: int
    world_size: int
    contiguous: bool

    @classmethod
    def under(cls, settings: DistributedSettings, cells: int, world_size: int) -> Spread:
        """Neighbouring cells where ranks keep whole gradients until the last turn; else cells in turn."""
        return cls(cells, world_size, contiguous=settings.strategy == "ddp" or not settings.sync_each_turn)

    @property
    def turns(self) -> int:
        """Turns of every rank."""
        return -(-self.cells // self.world_size)

    @property
    def idle_share(self) -> float:
        """Share of turns that add nothing."""
        return 1 - self.cells / (self.turns * self.world_size)

    def held(self, rank: int) -> range:
        """The cells of a rank, if they are contiguous."""
        return range(min(rank * self.turns, self.cells), min((rank + 1) * self.turns, self.cells))

    @cached_property
    def shares(self) -> list[range]:
        """The cells of every rank, if they are contiguous."""
        return [self.held(rank) for rank in range(self.world_size)]

    def turns_of(self, seed: int, step: int, *, size: int, rank: int) -> list[Turn]:
        """The rank's turns of one step."""
        result = []
        for turn in range(self.turns):
            first, apart = (turn, self.turns) if self.contiguous else (turn * self.world_size, 1)
            index = first + apart * rank
            cell = Cell(seed, step, index % self.cells, size)
            result.append(Turn(cell, index < self.cells, is_last=turn == self.turns - 1, first=first))
        return result

    def in_order(self, gathered: Tensor) -> Tensor:
        """What all ranks have of all turns, ``(world_size, turns, ...)``, in the order of cells, ``(cells, ...)``."""
        by_cell = gathered if self.contiguous else gathered.transpose(0, 1)
        return by_cell.flatten(0, 1)[: self.cells]
