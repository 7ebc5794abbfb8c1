"""Distances between two sets of rows.

The Fréchet distance compares Gaussians fitted to them (Dowson and Landau 1982; Heusel et al. 2017). The kernel distance
is the maximum mean discrepancy under a cubic kernel (Bińkowski et al. 2018; KID on Inception).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gfgw_prod.distributed.cells import random_stream
from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.evaluation.neighbours import Progress

SUBSETS, SUBSET_ROWS = 100, 1000  # of the kernel distance, as published


class Moments:
    """Mean and covariance of a stream of rows of width ``dim``, in float64 (Chan, Golub and LeVeque 1983).

    Up to ``2 dim`` rows are kept as they are, which is less work. The last bits depend on the blocks and their order,
    so both must be fixed.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        self.count, self._dim = 0, dim
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._kept: list[Tensor] | None = []
        self._scatter = self._factor = self._mean.new_zeros(0)

    def add(self, rows: Tensor) -> None:
        """Add a block of rows ``(n, d)``."""
        blocks = [rows.to(self._mean.device, torch.float64)]
        self._factor = self._factor[:0]
        if self._kept is not None:
            self._kept += blocks
            if self.count + len(rows) <= 2 * self._dim:
                self.count += len(rows)
                return
            blocks, self._kept, self.count = self._kept, None, 0
            self._scatter = self._mean.new_zeros(self._dim, self._dim)
        for block in blocks:
            mean, total = block.mean(dim=0), self.count + len(block)
            centred, gap = block - mean, mean - self._mean
            self._scatter += centred.T @ centred + torch.outer(gap, gap) * (self.count * len(block) / total)
            self._mean += gap * (len(block) / total)
            self.count = total

    @property
    def mean(self) -> Tensor:
        """The mean ``(d,)``."""
        return torch.cat(self._kept).mean(dim=0) if self._kept else self._mean

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance ``(d, d)`` of at least two rows."""
        return self.factor.T @ self.factor if self._kept else self._scatter / (self.count - 1)

    @property
    def factor(self) -> Tensor:
        """A matrix ``L (k, d)`` with ``LᵀL`` the covariance of at least two rows; computed once."""
        if not len(self._factor):
            if self._kept:
                rows = torch.cat(self._kept)
                rows = (rows - rows.mean(dim=0)) / (self.count - 1) ** 0.5
                self._factor = rows if len(rows) <= self._dim else torch.linalg.qr(rows, mode="r").R
            else:
                values, vectors = torch.linalg.eigh(self.covariance)
                self._factor = (vectors * values.clamp_min(0).sqrt()).T
        return self._factor


def moments_of(rows: Tensor, block_rows: int = 256) -> Moments:
    """Moments of rows ``(n, d)`` in memory."""
    moments = Moments(rows.shape[1], rows.device)
    for block in rows.split(block_rows):
        moments.add(block)
    return moments


def frechet_distance(first: Moments, second: Moments) -> float:
    """``|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)``.

    With ``C = LᵀL``, the eigenvalues of ``(C1 C2)^½`` are the singular values of ``L1 L2ᵀ``. Square roots of the
    eigenvalues of ``C1 C2`` would have half the digits.
    """
    gap, (one, two) = first.mean - second.mean, (first.factor, second.factor)
    spread = one.square().sum() + two.square().sum() - 2 * torch.linalg.svdvals(one @ two.T).sum()
    return max(float(gap @ gap + spread), 0.0)  # rounding may leave it just below 0


def kernel_distance(samples: RowTable, data: RowTable, *, seed: int, on_progress: Progress) -> tuple[float, float]:
    """Mean and standard deviation of MMD² over 100 subsets of 1,000 rows each, or of all rows if there are fewer.

    Rank ``s mod world_size`` computes subset ``s``, drawn from stream ``(seed, "kernel", s)``. If a subset holds all
    samples and all data, there is only one. Collective.
    """
    world, size = samples.world, min(SUBSET_ROWS, samples.total, data.total)
    # A set that all subsets hold is fetched once, and compared with itself once.
    whole = [rows.rows(torch.arange(size)).double() if rows.total == size else None for rows in (samples, data)]
    own_whole = [None if rows is None else _within(rows) for rows in whole]
    subsets = 1 if None not in own_whole else SUBSETS
    mine = torch.zeros(-(-subsets // world.world_size), dtype=torch.float64, device=world.device)
    for index, first in enumerate(range(0, subsets, world.world_size)):
        on_progress("kernel distance", first, subsets)
        own: list[Tensor] = []
        for subset in range(first, min(first + world.world_size, subsets)):  # `rows` is collective
            stream = random_stream(seed, "kernel", subset)
            drawn = [torch.randperm(rows.total, generator=stream)[:size] for rows in (samples, data)]
            found = [
                rows.rows(ids).double() if same is None else same
                for rows, ids, same in zip((samples, data), drawn, whole, strict=True)
            ]
            own = found if subset - first == world.rank else own
        if own:
            a, b = (_within(rows) if known is None else known for rows, known in zip(own, own_whole, strict=True))
            mine[index] = a + b - 2 * _kernel(*own).mean()
    values = world.all_gather(mine).T.flatten()[:subsets].cpu()  # in the order of subsets
    return float(values.mean()), float(values.std(correction=0))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    inner = (a @ b.T).div_(a.shape[1]).add_(1)
    return inner.square().mul_(inner)  # several times as fast as a power


def _within(rows: Tensor) -> Tensor:
    """Mean kernel of different rows."""
    kernel = _kernel(rows, rows)
    return (kernel.sum() - kernel.trace()) / (len(rows) * (len(rows) - 1))
