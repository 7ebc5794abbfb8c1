"""Cells: the unit of work and of randomness, the same wherever they run.

A step's batch is ``K`` cells of fixed size. Every random stream of a cell is a function of
``(seed, stream, step, cell)``, so no generator state is ever stored and the number of ranks cannot matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


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
class Round:
    """One turn of a rank. A short rank repeats a cell with ``counts=False``: it takes part, and adds nothing."""

    cell: Cell
    counts: bool
    live_ranks: int
    is_last: bool

    @property
    def weight(self) -> float:
        """Factor of the cell's loss."""
        return 1.0 if self.counts else 0.0


def rounds(seed: int, step: int, *, cells: int, size: int, rank: int, world_size: int) -> list[Round]:
    """The rank's turns of one step: turn ``j`` runs cell ``j * world_size + rank``."""
    count = -(-cells // world_size)
    result = []
    for turn in range(count):
        index = turn * world_size + rank
        live = min(world_size, cells - turn * world_size)
        cell = Cell(seed, step, index % cells, size)
        result.append(Round(cell, counts=index < cells, live_ranks=live, is_last=turn == count - 1))
    return result
