"""Semi-discrete optimal transport from the noise distribution to the whole data set, solved before training.

A batch that is coupled on its own must cover all columns. With few slots of a class, each slot then takes a large share
of the class, and its target depends little on its noise. Here the potential of the semi-discrete problem is fitted
before training, so a slot's target depends on its noise alone (Mousavi-Hosseini et al. 2025, "Flow Matching with
Semidiscrete Couplings"; docs/mathematics.md, eq. 10). Fitting draws noise, and needs no pass of a network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gfgw_prod.distributed.cells import random_stream
from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.distributed.transfers import to_device
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.transport.columns import Columns, Logits

STEPS = 100  # of stochastic gradient ascent; the potential is the average over the second half
ROWS_PER_COLUMN = 1 / 8  # noise samples per step and column
FEWEST_ROWS, MOST_ROWS = 128, 2048  # bounds on the noise samples of a step
LARGEST_CLASS = round(MOST_ROWS / ROWS_PER_COLUMN)  # columns; with more, too few noise samples would reach each column
RATE, SLOWS_FROM = 2.0, 10  # the rate of step k is RATE / sqrt(1 + k / SLOWS_FROM), in units of epsilon


def check_largest_class(size: int) -> None:
    """Raise ``UserError`` if there are too many images of a class, or of all where classes do not matter."""
    if size > LARGEST_CLASS:
        raise UserError(
            f"transport.dual fitted takes at most {LARGEST_CLASS:,} images of a class, not {size:,}; divide them into "
            "class folders, or couple each batch: transport.dual fresh, scope subset, target sample, noise_weight 4, "
            "epsilon and epsilon_end 0.02"
        )


class FittedDual:
    """The fitted potential of every bank row, by global row id, in units of the cost. Training does not change it.

    Args:
        labels: class ids ``(total,)`` of the rows, on the CPU, if noise is coupled within its class only.

    Raises:
        UserError: if a class has more than ``LARGEST_CLASS`` rows.
    """

    def __init__(self, total: int, labels: Tensor | None, world: World):
        self.potential = RowTable(total, (), world)
        self._classes = (
            [torch.arange(total)]
            if labels is None
            else [(labels == number).nonzero()[:, 0] for number in labels.unique()]
        )
        check_largest_class(max(map(len, self._classes)))

    @torch.no_grad()
    def fit(self, bank: FeatureBank, *, pixels: int, epsilon: float, seed: int) -> None:
        """Fit the potential, so that the rows of a class receive equal shares of the noise. Collective.

        The classes are divided among the ranks. Each class is fitted by one rank, so the result does not depend on
        the number of ranks.

        Args:
            pixels: number of pixel values, which are the first columns of the bank.
        """
        world, classes = bank.world, self._classes
        fitted = torch.zeros(bank.total, device=world.device)
        for first in range(0, len(classes), world.world_size):
            # Fetch a class for each rank, then fit: a rank that fits would keep the others waiting.
            own, rows = first + world.rank, None
            for number in range(first, min(first + world.world_size, len(classes))):
                fetched = bank.rows(classes[number])
                rows = fetched[:, :pixels] if number == own else rows
            if rows is not None:
                ids = to_device(classes[own], world.device)
                fitted[ids] = _fitted(rows, epsilon, random_stream(seed, "dual", own))
        self.potential.fill(0, world.all_reduce_sum(fitted.view(torch.int32)).view(torch.float32))

    def targets(self, noise: Tensor, columns: Columns, labels: Tensor | None) -> Tensor:
        """Global ids ``(n,)`` of the bank rows that directions of noise ``(n, d)`` are coupled with. Collective.

        Args:
            columns: the bank's rows.
            labels: class ids ``(n,)`` of the noise, if the columns have class ids.
        """
        g = self.potential.local
        scores = Logits(
            columns, labels, lambda block, out: torch.addmm(g[block], noise, columns.features[block].T, out=out)
        )

        def by_block() -> Iterator[tuple[slice, Tensor]]:
            for block in columns.blocks:
                scores.into(block, out := noise.new_empty(len(noise), block.stop - block.start))
                yield block, out

        return columns.argmax(by_block(), noise[:, 0])

    def tensors(self) -> dict[str, Tensor]:
        """Tensors to checkpoint."""
        return {"fitted": self.potential.state()}


def _fitted(rows: Tensor, epsilon: float, stream: torch.Generator) -> Tensor:
    """The potential ``(m,)`` with which each of the columns ``rows (m, d)`` is the target equally often.

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
