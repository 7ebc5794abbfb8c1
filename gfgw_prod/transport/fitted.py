"""A potential fitted to noise: couples the noise distribution with the whole data set, before training.

A batch that is coupled afresh must cover all columns by itself. With few slots of a class, each slot then takes a large
share of the class, and its target says little about its noise. Here the potential of the semi-discrete problem is known
beforehand, so each slot takes its own target, whatever else is in the batch (Mousavi-Hosseini et al. 2025, "Flow
Matching with Semidiscrete Couplings"; docs/mathematics.md, eq. 10). Noise is drawn without the generator, so fitting
costs no pass of a network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gfgw_prod.distributed.cells import random_stream
from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.distributed.transfers import to_device
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.process.exit_codes import UserError

STEPS = 100  # of stochastic gradient ascent; the potential is the average of the second half
ROWS_PER_COLUMN = 1 / 8  # rows of noise in a step, between these bounds
FEWEST_ROWS, MOST_ROWS = 128, 2048
LARGEST_CLASS = round(MOST_ROWS / ROWS_PER_COLUMN)  # rows; with more, the noise would not reach every row often enough
RATE, SLOWS_FROM = 2.0, 10  # the rate of step k is RATE / sqrt(1 + k / SLOWS_FROM), in units of epsilon


class FittedDual:
    """The potential of every bank row, by global row id, in units of the cost. Training does not change it.

    Args:
        labels: class ids ``(total,)`` of the rows, on the CPU, if noise couples with rows of its own class only.

    Raises:
        UserError: if a class has too many rows.
    """

    def __init__(self, total: int, labels: Tensor | None, world: World):
        self.potential = RowTable(total, (), world)
        self._classes = (
            [torch.arange(total)]
            if labels is None
            else [(labels == number).nonzero()[:, 0] for number in labels.unique()]
        )
        if (largest := max(map(len, self._classes))) > LARGEST_CLASS:
            limit = f"transport.dual fitted takes at most {LARGEST_CLASS:,} images of a class"
            raise UserError(f"{limit}, and here are {largest:,}; use dual persistent, or fresh with scope subset")

    @torch.no_grad()
    def fit(self, bank: FeatureBank, *, width: int, epsilon: float, seed: int) -> None:
        """Fit the potential to noise: the rows of a class get equal shares of it. Collective.

        Ranks share the classes. Each class is fitted by one rank, so the number of ranks does not change the bits.

        Args:
            width: number of pixel values; the bank's first columns.
        """
        world, classes = bank.world, self._classes
        fitted = torch.zeros(bank.total, device=world.device)
        for first in range(0, len(classes), world.world_size):
            # Fetch a class for each rank, then fit: a rank that fits would keep the others waiting.
            own, rows = first + world.rank, None
            for number in range(first, min(first + world.world_size, len(classes))):
                fetched = bank.rows(classes[number])
                rows = fetched[:, :width] if number == own else rows
            if rows is not None:
                ids = to_device(classes[own], world.device)
                fitted[ids] = _fitted(rows, epsilon, random_stream(seed, "dual", own))
        self.potential.fill(0, world.all_reduce_sum(fitted.view(torch.int32)).view(torch.float32))

    def targets(self, bank: FeatureBank, noise: Tensor, mine: Tensor | None, of_rows: Tensor | None) -> Tensor:
        """The row ``(n,)`` that each direction of noise ``(n, d)`` is coupled with, by global id. Collective.

        Args:
            mine, of_rows: class ids of the noise, ``(n,)``, and of the bank's rows, ``(N,)``, on the bank's device.
        """
        best = noise.new_full((len(noise),), -torch.inf)
        ids = torch.zeros(len(noise), dtype=torch.int64, device=noise.device)
        for first in range(bank.start, bank.end, bank.block_rows):
            block = slice(first, min(first + bank.block_rows, bank.end))
            own = slice(block.start - bank.start, block.stop - bank.start)
            scores = torch.addmm(self.potential.local[own], noise, bank.local[own].T)
            if mine is not None and of_rows is not None:
                scores.masked_fill_(mine[:, None] != of_rows[block][None, :], -torch.inf)
            value, column = scores.max(dim=1)
            ids = torch.where(value > best, first + column, ids)
            best = torch.maximum(best, value)
        if bank.world.world_size == 1:
            return ids
        rank = bank.world.all_gather(best).argmax(dim=0)  # (n,) the rank with each one's best row
        return bank.world.all_gather(ids).gather(0, rank[None])[0]

    def tensors(self) -> dict[str, Tensor]:
        """Tensors to checkpoint."""
        return {"fitted": self.potential.state()}


def _fitted(rows: Tensor, epsilon: float, stream: torch.Generator) -> Tensor:
    """The potential ``(m,)`` with which noise has the columns ``rows (m, d)`` as targets equally often.

    Averaged stochastic gradient ascent (Genevay et al. 2016, "Stochastic optimization for large-scale optimal
    transport", algorithm 2).
    """
    total, width = rows.shape
    count = min(max(1 << (int(total * ROWS_PER_COLUMN) - 1).bit_length(), FEWEST_ROWS), MOST_ROWS)
    g, average = rows.new_zeros(total), rows.new_zeros(total)
    for step in range(STEPS):
        # Drawn on the CPU, so that it is the same on every device.
        noise = normalize(to_device(torch.randn(count, width, generator=stream), rows.device), dim=1)
        mass = torch.addmm(g, noise, rows.T).div_(epsilon).softmax(dim=1).mean(dim=0)
        g = g - epsilon * RATE / math.sqrt(1 + step / SLOWS_FROM) * (total * mass - 1)
        if step >= STEPS // 2:
            average += g
    return average / (STEPS - STEPS // 2)
