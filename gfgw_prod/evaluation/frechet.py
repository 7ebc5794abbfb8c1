"""Fréchet distance of Gaussians fitted to two sets of rows (Dowson and Landau 1982; Heusel et al. 2017)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def frechet_distance(first: Array, second: Array) -> float:
    """``|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)`` of rows ``(n, d)`` and ``(m, d)``.

    The trace of the square root comes from the symmetric ``C1^½ C2 C1^½``, which has the same eigenvalues.
    """
    mean_gap = first.mean(axis=0) - second.mean(axis=0)
    cov_first = np.atleast_2d(np.cov(first, rowvar=False))
    cov_second = np.atleast_2d(np.cov(second, rowvar=False))
    values, vectors = np.linalg.eigh(cov_first)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_second @ root).clip(min=0)).sum()
    return float(mean_gap @ mean_gap + np.trace(cov_first) + np.trace(cov_second) - 2 * cross)
