"""Fréchet distance of Gaussians fitted to two sets of rows (Dowson and Landau 1982; Heusel et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean and covariance of rows that come block by block, in float64 (Chan, Golub and LeVeque 1983).

    The last bits depend on the blocks and their order, so both must be fixed. Memory is that of one covariance.

    Args:
        dim: width of the rows, d.
        device: where the sums are.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Adds a block of rows ``(n, d)``."""
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
    """Moments of rows ``(n, d)`` that are all there."""
    moments = Moments(rows.shape[1], rows.device)
    for block in rows.split(block_rows):
        moments.add(block)
    return moments


def frechet_distance(first: Moments, second: Moments) -> float:
    """``|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)``.

    ``(C1 C2)^½`` has the eigenvalues of ``(C1^½ C2 C1^½)^½``, the singular values of ``C2^½ C1^½``; roots come from
    symmetric eigendecompositions. Squaring the roots' product first would lose half of all digits.
    """
    gap = first.mean - second.mean
    covariances = first.covariance, second.covariance
    cross = torch.linalg.svdvals(_root(covariances[1]) @ _root(covariances[0])).sum()
    spread = covariances[0].trace() + covariances[1].trace() - 2 * cross
    return max(float(gap @ gap + spread), 0.0)  # rounding may leave it just below


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root
