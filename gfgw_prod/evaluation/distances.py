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

    The last bits depend on the blocks and their order, so both must be fixed.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Add a block of rows ``(n, d)``."""
        rows = rows.to(self.mean.device, torch.float64)
        mean, total = rows.mean(dim=0), self.count + len(rows)
        centred, gap = rows - mean, mean - self.mean
        self._scatter += centred.T @ centred + torch.outer(gap, gap) * (self.count * len(rows) / total)
        self.mean += gap * (len(rows) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance ``(d, d)`` of at least two rows."""
        return self._scatter / (self.count - 1)


def moments_of(rows: Tensor, block_rows: int = 256) -> Moments:
    """Moments of rows ``(n, d)`` in memory."""
    moments = Moments(rows.shape[1], rows.device)
    for block in rows.split(block_rows):
        moments.add(block)
    return moments


def frechet_distance(first: Moments, second: Moments) -> float:
    """``|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)``.

    The eigenvalues of ``(C1 C2)^½`` are those of ``(C1^½ C2 C1^½)^½``, which are the singular values of
    ``C2^½ C1^½``; the roots come from symmetric eigendecompositions. Eigenvalues of ``C1^½ C2 C1^½`` itself would have
    half the digits.
    """
    gap = first.mean - second.mean
    covariances = first.covariance, second.covariance
    cross = torch.linalg.svdvals(_root(covariances[1]) @ _root(covariances[0])).sum()
    spread = covariances[0].trace() + covariances[1].trace() - 2 * cross
    return max(float(gap @ gap + spread), 0.0)  # rounding may leave it just below 0


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def squared_mmd(first: Tensor, second: Tensor) -> float:
    """The unbiased estimate of MMD² of rows ``(n, d)`` and ``(m, d)`` under ``k(x, y) = (x·y / d + 1)³``, float64."""
    first, second = first.double(), second.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        inner = (a @ b.T).div_(a.shape[1]).add_(1)
        return inner.square().mul_(inner)  # several times as fast as a power

    same = kernel(first, first), kernel(second, second)
    within = sum((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in same)
    return float(within - 2 * kernel(first, second).mean())


def kernel_distance(samples: RowTable, data: RowTable, *, seed: int, on_progress: Progress) -> tuple[float, float]:
    """Mean and standard deviation of MMD² over 100 subsets of 1,000 rows each, or of all rows if there are fewer.

    Rank ``s mod world_size`` computes subset ``s``, drawn from stream ``(seed, "kernel", s)``. Collective.
    """
    world, size = samples.world, min(SUBSET_ROWS, samples.total, data.total)
    mine = torch.zeros(-(-SUBSETS // world.world_size), dtype=torch.float64, device=world.device)
    for index, first in enumerate(range(0, SUBSETS, world.world_size)):
        on_progress("kernel distance", first, SUBSETS)
        own: list[Tensor] = []
        for subset in range(first, min(first + world.world_size, SUBSETS)):  # `rows` is collective
            stream = random_stream(seed, "kernel", subset)
            drawn = [rows.rows(torch.randperm(rows.total, generator=stream)[:size]) for rows in (samples, data)]
            own = drawn if subset - first == world.rank else own
        if own:
            mine[index] = squared_mmd(*own)
    values = world.all_gather(mine).T.flatten()[:SUBSETS].cpu()  # in the order of subsets
    return float(values.mean()), float(values.std(correction=0))
