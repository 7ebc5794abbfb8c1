"""The Gromov-Wasserstein term on a cell: distances among generated images against distances among their targets."""

from __future__ import annotations

from torch import Tensor


def structure_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of the cosine-distance matrices ``(n, n)`` of unit rows ``(n, d)``."""
    return (predicted @ predicted.T - target @ target.T).square().mean()
