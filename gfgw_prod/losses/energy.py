"""Energy distance between what is generated and what it was matched with (Székely and Rizzo 2013, eq. 5), on a batch.

Regression onto matches pulls a generator that cannot follow all of them towards their means, and its samples crowd. The
energy distance is least where both distributions are equal: its self term drives samples apart.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

SMALLEST_SQUARE = 1e-6  # of distances: at 0 the root has no slope


class Crowd(NamedTuple):
    """A step's whole batch, as a cell of it sees it.

    ``generated`` and ``matched`` are features ``(B, d)`` of all samples and of their targets, without gradient; the
    cell's ``slots`` stand among them. With class ids ``labels (B,)``, slots are compared with those of their class.
    """

    generated: Tensor
    matched: Tensor
    slots: slice
    labels: Tensor | None = None


def energy_loss(predicted: Tensor, crowd: Crowd) -> Tensor:
    """Mean over slots ``i`` of ``mean_k |p_i - m_k| - mean_k≠i |p_i - g_k|``; 0 for slots that stand alone.

    Matches are spread evenly over the bank, so that all of a slot's class, its own among them, stand for the data; and
    each is near its sample, so that most of what is random about a batch cancels. What others generated comes without
    gradient: by symmetry that is half the gradient of the energy distance. ``predicted``, ``(n, d)``, are the features
    of the slots, with gradient.
    """
    generated, matched, slots, labels = crowd
    related = predicted.new_ones(len(predicted), len(generated))
    if labels is not None:
        related = (labels[slots, None] == labels).to(predicted)
    others = related.clone()
    others[:, slots].fill_diagonal_(0)
    counts = others.sum(dim=1)
    cross = (related * _distances(predicted, matched)).sum(dim=1) / related.sum(dim=1)
    own = (others * _distances(predicted, generated)).sum(dim=1) / counts.clamp_min(1)
    return ((cross - own) * (counts > 0)).mean()


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean, of rows ``(n, d)`` and ``(m, d)``; the squares come from one product of matrices."""
    squares = first.square().sum(dim=1)[:, None] + second.square().sum(dim=1) - 2 * first @ second.T
    return (squares.clamp_min(0) + SMALLEST_SQUARE).sqrt()
