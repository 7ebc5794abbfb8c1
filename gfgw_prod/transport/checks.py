"""Checks of a coupling's inputs, with a one-line error for each.

With ``read_values=False`` only shapes are checked, and the host reads no value of a tensor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gfgw_prod.transport.coupling import Options, Start

SUM_ERROR = 1e-4  # largest deviation of a marginal's sum
SMALLEST_EPSILON = 1e-30  # the cost over a smaller ε overflows float32


def checked_options(options: Options) -> None:
    """Raise ``ValueError`` for numbers out of range and unknown names."""
    if not 0 <= options.structure_weight <= 1:
        raise ValueError(f"structure_weight must lie in [0, 1], not {options.structure_weight}")
    if not SMALLEST_EPSILON <= options.epsilon < math.inf:
        raise ValueError(f"epsilon must be > 0 (at least {SMALLEST_EPSILON:g}) and finite, not {options.epsilon}")
    if not 0 < options.tolerance < math.inf:
        raise ValueError(f"tolerance must be > 0 and finite, not {options.tolerance}")
    for name in ("max_outer_iterations", "max_inner_iterations"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(options, name)}")
    if options.geometry not in ("cosine", "euclidean"):
        raise ValueError(f"geometry must be cosine or euclidean, not {options.geometry!r}")


def checked_features(x: Tensor, y: Tensor, *, read_values: bool) -> tuple[Tensor, Tensor]:
    """Detached features: ``x (n, d)`` in float32 or float64, ``y (N, d)`` in its own dtype; else ``ValueError``."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(f"x and y must be (n, d) and (N, d), not {tuple(x.shape)} and {tuple(y.shape)}")
    if not (x.is_floating_point() and y.is_floating_point()):
        raise ValueError(f"x and y must be of a floating-point type, not {x.dtype} and {y.dtype}")
    x, y = x.detach(), y.detach()
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    # The sum is finite only if every number is, and takes a tenth of the time of looking at each.
    if read_values and not torch.isfinite(x.sum() + y.sum(dtype=x.dtype)):
        raise ValueError("x and y must be finite")
    return x, y


def checked_marginal(name: str, given: Tensor | None, like: Tensor, *, read_values: bool) -> Tensor:
    """The marginal ``(len(like),)`` in the dtype of ``like``, scaled to sum 1; uniform if ``given`` is ``None``.

    Raises:
        ValueError: for another shape, negative masses, or a sum other than 1.
    """
    count = len(like)
    if given is None:
        return like.new_full((count,), 1 / count)
    marginal = given.detach().to(like.device, torch.float64)
    fits = marginal.shape == (count,)
    if fits and read_values:
        fits = abs(float(marginal.sum()) - 1) <= SUM_ERROR and bool((marginal >= 0).all())  # not with a NaN
    if not fits:
        raise ValueError(f"{name} must be ({count},), non-negative and sum to 1")
    return (marginal / marginal.sum()).to(like.dtype)


def checked_classes(
    p: Tensor, q: Tensor, row_labels: Tensor | None, column_labels: Tensor | None, *, read_values: bool
) -> Tensor:
    """The columns' masses ``(N,)``, scaled so that each class has exactly the mass of its rows.

    Raises:
        ValueError: if a class has rows but no columns, or columns of another total mass.
    """
    if row_labels is None or column_labels is None:
        raise ValueError("row_labels and column_labels go together")
    for name, labels, masses in (("row_labels", row_labels, p), ("column_labels", column_labels, q)):
        if labels.shape != masses.shape:
            raise ValueError(f"{name} must be ({len(masses)},), not {tuple(labels.shape)}")
    if not read_values:
        return q
    q = q.clone()
    for label in torch.cat([row_labels, column_labels]).unique().tolist():
        here = column_labels == label
        rows, columns = float(p[row_labels == label].double().sum()), float(q[here].double().sum())
        if rows > 0 and columns == 0:
            raise ValueError(f"class {label} has rows but no columns with mass")
        if abs(rows - columns) > SUM_ERROR:
            raise ValueError(f"class {label} has mass {rows:.4g} among rows but {columns:.4g} among columns")
        if columns > 0:
            q[here] *= rows / columns
    return q


def checked_start(start: Start, x: Tensor, y: Tensor, geometry: str, *, read_values: bool) -> None:
    """Raise ``ValueError`` if ``start`` has another shape or dtype than the problem, or a NaN."""
    state_shape = (x.shape[1], x.shape[1]) if geometry == "cosine" else (len(x), len(y))
    for name, tensor, shape in (("start.g", start.g, (len(y),)), ("start.state", start.state, state_shape)):
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype != x.dtype:
            raise ValueError(f"{name} must be {shape} and {x.dtype}, not {tuple(tensor.shape)} and {tensor.dtype}")
        if read_values and bool(tensor.isnan().any()):
            raise ValueError(f"{name} must not have NaN")
