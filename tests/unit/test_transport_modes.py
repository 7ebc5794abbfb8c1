"""Modes of the solver: Euclidean distances, fixed trips, half precision, tiny ε, warm starts."""

import math

import ot
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gfgw_prod.transport import Plan, Start, fused_gromov_wasserstein

from ..features import close_rows


def clusters(rows: int, dim: int, seed: int) -> Tensor:
    """Rows of ten overlapping classes, like features of images."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, dim, generator=torch.Generator().manual_seed(99))
    classes = torch.randint(10, (rows,), generator=generator)
    return torch.nn.functional.normalize(centres[classes] + 0.8 * torch.randn(rows, dim, generator=generator))


def test_euclidean_plan_is_pots_plan() -> None:
    x, y = close_rows(9, 5, 2), close_rows(14, 5, 3)
    plan = fused_gromov_wasserstein(
        x, y, structure_weight=0.3, epsilon=0.05, geometry="euclidean", tolerance=1e-11, max_outer_iterations=500
    )
    distances = torch.cdist(x, y), torch.cdist(x, x), torch.cdist(y, y)
    p, q = x.new_full((9,), 1 / 9), x.new_full((14,), 1 / 14)
    expected, log = ot.gromov.entropic_fused_gromov_wasserstein(
        *distances, p, q, loss_fun="square_loss", epsilon=0.05, alpha=0.3, tol=1e-12, stopThr=1e-12, log=True
    )
    assert (plan.dense() - expected).abs().sum() <= 1e-6
    T = plan.dense()
    assert plan.objective() == pytest.approx(float(log["fgw_dist"] + 0.05 * (T * T.log()).sum()), abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.05, 0.01, 0.003, 0.001])
@pytest.mark.parametrize("lam", [0.0, 0.2])
def test_single_precision_meets_the_tolerance_or_reports_that_it_does_not(lam: float, epsilon: float) -> None:
    x, y = clusters(96, 48, 6), clusters(400, 48, 7)
    plan = fused_gromov_wasserstein(x, y, structure_weight=lam, epsilon=epsilon, tolerance=1e-4)
    T = plan.dense().double()
    error = float((T.sum(dim=1) - 1 / 96).abs().sum() + (T.sum(dim=0) - 1 / 400).abs().sum())
    assert torch.isfinite(T).all()
    assert math.isfinite(plan.objective())
    assert error <= 2e-4 or plan.status.marginal_error > 1e-4
    assert error == pytest.approx(plan.status.marginal_error, abs=1e-3)
    if epsilon >= 0.003:
        assert plan.status.converged


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_converted_to_single(dtype: torch.dtype) -> None:
    x, y = clusters(40, 16, 8).to(dtype), clusters(90, 16, 9).to(dtype)
    half, single = (
        fused_gromov_wasserstein(a, b, structure_weight=0.2, epsilon=0.05) for a, b in ((x, y), (x.float(), y.float()))
    )
    assert half.dense().dtype == torch.float32
    assert torch.equal(half.dense(), single.dense())


def fixed(x: Tensor, y: Tensor) -> Plan:
    return fused_gromov_wasserstein(
        x, y, structure_weight=0.2, epsilon=0.1, max_outer_iterations=2, max_inner_iterations=10, fixed_iterations=True
    )


class HostReads(TorchDispatchMode):
    """Count host reads of tensor values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_fixed_trips_read_nothing_on_the_host_and_come_close() -> None:
    x, y = clusters(30, 16, 10), clusters(70, 16, 11)
    with HostReads() as reads:
        plan = fixed(x, y)
        plan.argmax()
    assert reads.count == 0
    exact = fused_gromov_wasserstein(x, y, structure_weight=0.2, epsilon=0.1, tolerance=1e-5)
    assert (plan.dense() - exact.dense()).abs().sum() <= 0.05
    assert float((plan.dense().sum(dim=1) - 1 / 30).abs().sum()) == pytest.approx(plan.status.marginal_error, abs=1e-4)
    with HostReads() as reads:
        fused_gromov_wasserstein(x, y, structure_weight=0.2, epsilon=0.1)
    assert reads.count > 0  # the adaptive solver reads, so the count above can fail


def test_fixed_trips_stay_finite_at_a_tiny_epsilon() -> None:
    plan = fused_gromov_wasserstein(
        clusters(30, 16, 10),
        clusters(70, 16, 11),
        structure_weight=0.2,
        epsilon=0.001,
        max_outer_iterations=2,
        max_inner_iterations=40,
        fixed_iterations=True,
    )
    assert torch.isfinite(plan.dense()).all()
    assert not plan.status.converged


def distant_clusters(rows: int, seed: int) -> Tensor:
    """Rows of 30 classes that hardly exchange mass at a small ε; each has another share of every sample."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(30, 64, generator=torch.Generator().manual_seed(98))
    classes = torch.randint(30, (rows,), generator=generator)
    return torch.nn.functional.normalize(centres[classes] + 0.7 * torch.randn(rows, 64, generator=generator))


@pytest.mark.parametrize("geometry", ["cosine", "euclidean"])
@pytest.mark.parametrize("epsilon", [0.05, 0.01])
def test_five_linearisations_of_eight_fixed_trips_are_exact_between_distant_clusters(
    epsilon: float, geometry: str
) -> None:
    x, y = distant_clusters(128, 0), distant_clusters(512, 1)
    options = {"structure_weight": 0.3, "epsilon": epsilon, "geometry": geometry}
    trips = {"max_outer_iterations": 5, "max_inner_iterations": 8, "fixed_iterations": True}
    plan, exact = (fused_gromov_wasserstein(x, y, **options, **more) for more in (trips, {"tolerance": 1e-6}))
    assert plan.status.marginal_error < 1e-5
    assert float(plan.status.state_error) < 5e-3
    assert torch.equal(plan.argmax(), exact.argmax())


@pytest.mark.parametrize(("epsilon", "most"), [(0.05, 4), (0.02, 6), (0.01, 10)])
def test_few_hessians_couple_distant_clusters(epsilon: float, most: int) -> None:
    x, y = distant_clusters(256, 0), distant_clusters(1024, 1)
    plan = fused_gromov_wasserstein(x, y, structure_weight=0.3, epsilon=epsilon, tolerance=1e-4)
    assert plan.status.converged
    assert plan.status.hessians <= most


@pytest.mark.slow
def test_fixed_trips_compile_whole() -> None:
    def answers(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        plan = fused_gromov_wasserstein(
            x,
            y,
            structure_weight=0.2,
            epsilon=0.1,
            max_outer_iterations=2,
            max_inner_iterations=3,
            fixed_iterations=True,
        )
        return plan.potentials.f, plan.potentials.g, plan.state, plan.argmax()

    x, y = clusters(10, 8, 12), clusters(30, 8, 13)
    # fullgraph fails at any host read; aot_eager skips the slow generation of code.
    compiled = torch.compile(answers, fullgraph=True, backend="aot_eager")(x, y)
    for ours, eager in zip(compiled, answers(x, y), strict=True):
        torch.testing.assert_close(ours, eager, atol=1e-4, rtol=1e-4)


def test_warm_start_saves_linearisations() -> None:
    x, y = close_rows(20, 8, 14), close_rows(30, 8, 15)
    options = {"structure_weight": 0.5, "epsilon": 0.02, "tolerance": 1e-9, "max_outer_iterations": 200}
    cold = fused_gromov_wasserstein(x, y, **options)
    warm = fused_gromov_wasserstein(x, y, **options, start=Start(cold.potentials.g * 0.02, cold.state))
    assert warm.status.outer_iterations < cold.status.outer_iterations
    assert (warm.dense() - cold.dense()).abs().sum() <= 1e-7


def test_sharpness_is_0_for_one_to_one_and_1_for_independent_plans() -> None:
    x = torch.eye(8, dtype=torch.float64)
    sharp, blind = (fused_gromov_wasserstein(x, x, structure_weight=0.0, epsilon=eps) for eps in (0.01, 1e6))
    assert sharp.sharpness() == pytest.approx(0, abs=1e-6)
    assert blind.sharpness() == pytest.approx(1, abs=1e-6)
