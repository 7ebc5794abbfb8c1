"""The boundary condition ``G(x, 0) = x``."""

from __future__ import annotations

from torch import Tensor


def boundary_loss(predicted: Tensor, images: Tensor) -> Tensor:
    """Mean over pixels of ``|G(x, 0) - x|²`` for ``predicted = G(x, 0)`` of images ``x (n, c, h, w)``."""
    return (predicted - images).square().mean()
