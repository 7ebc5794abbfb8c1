"""Cosine distance in feature space, with gradient through the frozen extractor."""

from __future__ import annotations

from torch import Tensor


def feature_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean of ``1 - cos`` between unit rows ``(n, d)`` of generated images and their targets."""
    return (1 - (predicted * target).sum(dim=1)).mean()
