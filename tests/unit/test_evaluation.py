"""The Fréchet distance."""

import numpy as np
import pytest
import scipy.linalg

from gfgw_prod.evaluation.frechet import frechet_distance


def rows(count: int, dim: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, dim)) @ random.normal(size=(dim, dim)) + random.normal(size=dim)


@pytest.mark.parametrize(("count", "dim"), [(200, 5), (50, 20), (300, 1)])
def test_distance_is_the_formula_with_a_matrix_square_root(count: int, dim: int) -> None:
    first, second = rows(count, dim, 0), rows(count + 7, dim, 1)
    covariances = [np.atleast_2d(np.cov(part.T)) for part in (first, second)]
    gap = first.mean(axis=0) - second.mean(axis=0)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_shift_is_at_its_squared_length() -> None:
    first, shift = rows(100, 4, 0), np.array([1.0, -2.0, 0.5, 0.0])
    assert frechet_distance(first, first + shift) == pytest.approx(shift @ shift)


def test_stretch_is_at_its_analytic_distance() -> None:
    first = rows(100, 3, 0)
    first = first - first.mean(axis=0)
    expected = np.trace(np.cov(first.T))  # tr(C + 4C - 2 * 2C)
    assert frechet_distance(first, 2 * first) == pytest.approx(expected)


def test_equal_sets_are_at_zero_even_without_full_rank() -> None:
    first = rows(10, 20, 0)
    first[:, 3] = 0
    assert frechet_distance(first, first.copy()) == pytest.approx(0, abs=1e-5)
