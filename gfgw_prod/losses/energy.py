"""Energy distance between generated samples and their targets, on a batch (Székely and Rizzo 2013, eq. 5).

Regression pulls a generator that cannot fit every target towards their mean, where its samples crowd. The energy
distance is minimal where both distributions are equal: its self term drives samples apart.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

SMALLEST_SQUARE = 1e-6  # added to squared distances: the square root has no finite slope at 0


class BatchFeatures(NamedTuple):
    """Features of a step's whole batch, without gradient, for one cell of it.

    ``generated`` and ``matched`` are features ``(B, d)`` of all samples and of their targets; ``slots`` are the cell's
    rows among them. With class ids ``labels (B,)``, slots are compared only with those of their class.
    """

    generated: Tensor
    matched: Tensor
    slots: slice
    labels: Tensor | None = None


def energy_loss(predicted: Tensor, batch: BatchFeatures) -> Tensor:
    """Mean over slots ``i`` of ``mean_k |p_i - m_k| - mean_k≠i |p_i - g_k|``; a slot alone in its class counts 0.

    Targets are spread evenly over the bank, so those of a slot's class, its own among them, represent the data. Each is
    near its sample, so most of a batch's randomness cancels. Other samples carry no gradient; by symmetry this gives
    half the gradient of the energy distance.

    Args:
        predicted: features ``(n, d)`` of the cell's slots, with gradient.
    """
    generated, matched, slots, labels = batch
    related = predicted.new_ones(len(predicted), len(generated))  # (n, B), 1 for slots of the same class
    if labels is not None:
        related = (labels[slots, None] == labels).to(predicted)
    others = related.clone()
    others[:, slots].fill_diagonal_(0)
    counts = others.sum(dim=1)  # (n,)
    cross = (related * _distances(predicted, matched)).sum(dim=1) / related.sum(dim=1)
    own = (others * _distances(predicted, generated)).sum(dim=1) / counts.clamp_min(1)
    return ((cross - own) * (counts > 0)).mean()


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances ``(n, m)`` of rows ``(n, d)`` and ``(m, d)``, by one matrix product."""
    squares = first.square().sum(dim=1)[:, None] + second.square().sum(dim=1) - 2 * first @ second.T
    return (squares.clamp_min(0) + SMALLEST_SQUARE).sqrt()
