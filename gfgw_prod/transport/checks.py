"""What a coupling's inputs must be, and one line for each that is not."""

from __future__ import annotations

import torch
from torch import Tensor

SUM_ERROR = 1e-4  # of a marginal


def checked_problem(
    x: Tensor,
    y: Tensor,
    structure_weight: float,
    epsilon: float,
    anneal_from: float | None,
    row_labels: Tensor | None,
    column_labels: Tensor | None,
    *,
    look: bool,
) -> None:
    """Raises ``ValueError`` for shapes and numbers that do not fit; ``look`` allows to read values of tensors."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(f"x and y must be (n, d) and (N, d), not {tuple(x.shape)} and {tuple(y.shape)}")
    if look and not torch.isfinite(x.sum() + y.sum()):  # a tenth of the time that looking at each number takes
        raise ValueError("x and y must be finite")
    if not 0 <= structure_weight <= 1:
        raise ValueError(f"structure_weight must lie in [0, 1], not {structure_weight}")
    for name, value in (("epsilon", epsilon), ("anneal_from", anneal_from)):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name} must be > 0 and finite, not {value}")
    if (row_labels is None) != (column_labels is None):
        raise ValueError("row_labels and column_labels go together")
    for name, labels, rows in (("row_labels", row_labels, x), ("column_labels", column_labels, y)):
        if labels is not None and labels.shape != (len(rows),):
            raise ValueError(f"{name} must be ({len(rows)},), not {tuple(labels.shape)}")


def checked_marginal(name: str, given: Tensor | None, rows: Tensor, *, look: bool) -> Tensor:
    """The marginal ``(len(rows),)`` in the dtype of ``rows``, uniform when omitted; ``ValueError`` if it is none."""
    count = len(rows)
    if given is None:
        return rows.new_full((count,), 1 / count)
    marginal = given.to(rows)
    fits = marginal.shape == (count,)
    if fits and look:
        sums_to_one = abs(float(marginal.sum()) - 1) <= SUM_ERROR  # false for NaN
        fits = sums_to_one and bool((marginal >= 0).all())
    if not fits:
        raise ValueError(f"{name} must be ({count},), non-negative and sum to 1")
    return marginal


def checked_classes(p: Tensor, q: Tensor, row_labels: Tensor, column_labels: Tensor, *, balanced: bool) -> None:
    """Raises ``ValueError`` where a class's rows find no columns, or columns of another total mass."""
    for label in torch.cat([row_labels, column_labels]).unique().tolist():
        rows, columns = float(p[row_labels == label].sum()), float(q[column_labels == label].sum())
        if rows > 0 and columns == 0:
            raise ValueError(f"class {label} has rows but no columns with mass")
        if balanced and abs(rows - columns) > SUM_ERROR:
            raise ValueError(f"class {label} has mass {rows:.4g} among rows but {columns:.4g} among columns")
