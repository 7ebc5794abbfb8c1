"""Figures of sets of features against analytic values, other implementations and brute force."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from gfgw_prod.data.sources import load_table
from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.distributed.world import World
from gfgw_prod.evaluation import distances, manifolds, neighbours
from gfgw_prod.evaluation.distances import frechet_distance, kernel_distance, moments_of
from gfgw_prod.evaluation.spaces import Pixels
from gfgw_prod.sampling.pictures import levels_of
from gfgw_prod.settings.config import DataSettings


def rows(count: int, dim: int, seed: int) -> Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.normal(size=(count, dim)) @ random.normal(size=(dim, dim)) + random.normal(size=dim))


def digits() -> Tensor:
    table = load_table(DataSettings(source="digits"))
    return Pixels(table.image_shape)(levels_of(table.rows(torch.arange(len(table)))))


def distance(first: Tensor, second: Tensor, block_rows: int = 256) -> float:
    return frechet_distance(moments_of(first, block_rows), moments_of(second, block_rows))


def table_of(rows: Tensor, world: World) -> RowTable:
    table = RowTable(len(rows), rows.shape[1:], world, rows.dtype)
    table.fill(0, rows)
    return table


def nothing(doing: str, done: int, total: int) -> None:
    pass


def by_square_root(first: Tensor, second: Tensor) -> float:
    """The formula as it stands, with scipy's root of a product that is not symmetric."""
    covariances = [np.atleast_2d(np.cov(part.numpy().T)) for part in (first, second)]
    gap = (first.mean(dim=0) - second.mean(dim=0)).numpy()
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return float(gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root))


@pytest.mark.parametrize(("count", "dim"), [(200, 5), (50, 20), (300, 1)])
def test_frechet_distance_is_the_formula_with_a_matrix_square_root(count: int, dim: int) -> None:
    first, second = rows(count, dim, 0), rows(count + 7, dim, 1)
    assert distance(first, second) == pytest.approx(by_square_root(first, second), rel=1e-8)


def test_halves_of_the_digits_are_as_far_apart_as_scipy_and_torch_fidelity_say() -> None:
    data = digits().double()[torch.randperm(1797, generator=torch.Generator().manual_seed(0))]
    data += 1e-3 * torch.randn(data.shape, generator=torch.Generator().manual_seed(1))  # some pixels are always black
    halves = data[::2], data[1::2]
    found = distance(*halves)
    assert found == pytest.approx(by_square_root(*halves), abs=1e-6)
    published = fid_statistics_to_metric(*(fid_features_to_statistics(half) for half in halves), verbose=False)
    assert found == pytest.approx(published["frechet_inception_distance"], abs=1e-6)


def test_equal_sets_are_at_zero_even_without_full_rank() -> None:
    first = rows(10, 20, 0)
    first[:, 3] = 0
    assert distance(first, first.clone()) == pytest.approx(0, abs=1e-10)
    assert distance(digits(), digits()) == pytest.approx(0, abs=1e-10)


def test_shift_is_at_its_squared_length() -> None:
    data = digits().double()
    shift = torch.linspace(-1, 1, 64, dtype=torch.float64)
    assert distance(data, data + shift) == pytest.approx(float(shift @ shift), abs=1e-6)


def test_stretch_is_at_its_analytic_distance() -> None:
    first = rows(100, 3, 0)
    first = first - first.mean(dim=0)
    assert distance(first, 2 * first) == pytest.approx(float(moments_of(first).covariance.trace()))


@pytest.mark.parametrize("block_rows", [1, 7, 256])
def test_moments_of_a_stream_are_those_of_all_rows(block_rows: int) -> None:
    all_rows = rows(100, 6, 0) + 1e4  # sums of squares would lose eight digits here
    moments = moments_of(all_rows, block_rows)
    np.testing.assert_allclose(moments.mean, all_rows.mean(dim=0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(all_rows.numpy().T), rtol=1e-10)


def squared_mmd(first: Tensor, second: Tensor) -> float:
    """The unbiased estimate of MMD² over all pairs of rows under ``k(x, y) = (x·y / d + 1)³``."""

    def mean(a: Tensor, b: Tensor, *, apart: bool) -> float:
        values = (a.double() @ b.double().T / a.shape[1] + 1) ** 3
        return float(values[~torch.eye(len(a), dtype=torch.bool)].mean() if apart else values.mean())

    return mean(first, first, apart=True) + mean(second, second, apart=True) - 2 * mean(first, second, apart=False)


def test_kernel_distance_agrees_with_torch_fidelity(alone: World) -> None:
    first, second = rows(400, 8, 0) / 4, rows(400, 8, 1) / 4
    tables = table_of(first, alone), table_of(second, alone)
    found, deviation = kernel_distance(*tables, seed=0, on_progress=nothing)  # every subset is the whole
    published = kid_features_to_metric(first, second, kid_subsets=1, kid_subset_size=400, verbose=False)
    assert found == pytest.approx(published["kernel_inception_distance_mean"], rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-9)


def test_kernel_distance_of_many_rows_is_a_mean_over_keyed_subsets(
    alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distances, "SUBSET_ROWS", 200)
    first, second = rows(300, 4, 0) / 4, rows(240, 4, 1) / 4
    tables = table_of(first, alone), table_of(second, alone)
    found, deviation = kernel_distance(*tables, seed=0, on_progress=nothing)
    assert found == pytest.approx(squared_mmd(first, second), abs=deviation)
    assert deviation > 0
    assert (found, deviation) == kernel_distance(*tables, seed=0, on_progress=nothing)
    assert (found, deviation) != kernel_distance(*tables, seed=1, on_progress=nothing)


@pytest.fixture
def crossing(alone: World, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, Tensor, neighbours.Crossing]:
    """Samples, data, neighbours of the data, how they lie: with blocks that divide nothing evenly."""
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", 16)
    monkeypatch.setattr(neighbours, "BLOCK_COLUMNS", 37)
    samples, data = rows(90, 3, 0), rows(120, 3, 0) + 0.5
    samples[5] = data[7]
    tables = table_of(samples, alone), table_of(data, alone)
    around = manifolds.data_neighbours(tables[1], nothing)
    return samples, data, around, manifolds.crossing(*tables, around, nothing)


def test_precision_and_recall_are_those_of_brute_force(
    crossing: tuple[Tensor, Tensor, Tensor, neighbours.Crossing],
) -> None:
    samples, data, _, found = crossing

    def share(these: Tensor, of: Tensor) -> float:
        radii = torch.cdist(of, of).sort(dim=1).values[:, 3]  # column 0 is the row itself
        return float((torch.cdist(these, of) <= radii).any(dim=1).double().mean())

    figures = manifolds.precision_recall(found)
    assert 0 < figures["precision"] < 1
    assert 0 < figures["recall"] < 1
    assert figures == {"precision": share(samples, data), "recall": share(data, samples)}


def test_coverage_is_that_of_brute_force_by_class(
    crossing: tuple[Tensor, Tensor, Tensor, neighbours.Crossing],
) -> None:
    samples, data, around, found = crossing
    labels, asked = torch.arange(120) % 4, torch.arange(90) % 4
    labels[labels == 2] = 3  # a class without images
    figures = manifolds.coverage(found, around, labels, 4, asked)
    across = torch.cdist(samples, data)
    covered = across.min(dim=0).values < torch.cdist(data, data).sort(dim=1).values[:, 5]
    nearest = labels[across.argmin(dim=1)]
    by_class = [float(covered[labels == each].double().mean()) for each in (0, 1, 3)]
    shares = [float((nearest == each).double().mean()) for each in range(4)]
    of_data = [0.25, 0.25, 0, 0.5]
    assert figures["coverage"] == pytest.approx(float(covered.double().mean()))
    assert figures["coverage_by_class"] == pytest.approx([*by_class[:2], 0, by_class[2]])
    assert figures["class_coverage_least"] == pytest.approx(min(by_class))
    assert figures["share_by_class"] == pytest.approx(shares)
    assert figures["class_divergence"] == pytest.approx(
        sum(abs(a - b) for a, b in zip(shares, of_data, strict=True)) / 2
    )
    assert figures["class_agreement"] == pytest.approx(float((nearest == asked).double().mean()))
    assert "class_agreement" not in manifolds.coverage(found, around, labels, 4, None)


def test_memorisation_is_that_of_brute_force(crossing: tuple[Tensor, Tensor, Tensor, neighbours.Crossing]) -> None:
    samples, data, around, found = crossing
    nearest = torch.cdist(samples, data).min(dim=1)
    own = torch.cdist(data, data).sort(dim=1).values[:, 1]
    figures = manifolds.memorisation(found, around)
    assert figures["memorisation"] == pytest.approx(float((nearest.values < own[nearest.indices]).double().mean()))
    assert 0 < figures["memorisation"] < 1
    assert figures["copies"] == 1 / 90


def test_copies_of_the_data_are_covered_and_memorised(alone: World) -> None:
    data = table_of(digits()[:300], alone)
    around = manifolds.data_neighbours(data, nothing)
    found = manifolds.crossing(data, data, around, nothing)
    assert manifolds.precision_recall(found) == {"precision": 1, "recall": 1}
    assert manifolds.memorisation(found, around) == {"memorisation": 1, "copies": 1}
    assert manifolds.coverage(found, around, torch.zeros(300).long(), 1, None)["coverage"] == 1
