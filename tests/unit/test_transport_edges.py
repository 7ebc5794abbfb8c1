"""Edge cases: solved in bounded time with the true error reported, or refused in one line."""

import math

import pytest
import torch
from torch import Tensor

from gfgw_prod.transport import Plan, Start, fused_gromov_wasserstein

from ..features import unit_rows


def solve(x: Tensor, y: Tensor, p: Tensor | None = None, q: Tensor | None = None, **options: object) -> Plan:
    return fused_gromov_wasserstein(x, y, p, q, **({"structure_weight": 0.2, "epsilon": 0.1} | options))


def row_error(plan: Plan, p: float | Tensor) -> float:
    return float((plan.dense().double().sum(dim=1) - p).abs().sum())


def test_marginals_that_almost_sum_to_1_are_normalised() -> None:
    plan = solve(unit_rows(6, 8, 0), unit_rows(9, 8, 1), torch.full((6,), (1 + 9e-5) / 6))
    assert plan.status.converged
    assert plan.status.inner_iterations < 200
    assert float(plan.dense().sum()) == pytest.approx(1, abs=1e-12)


def test_class_masses_that_almost_agree_are_made_equal() -> None:
    labels, q = torch.arange(8) % 2, torch.full((8,), 1 / 8, dtype=torch.float64)
    q[0] += 3e-5
    q[1] -= 3e-5
    plan = solve(unit_rows(8, 4, 0), unit_rows(8, 4, 1), None, q, row_labels=labels, column_labels=labels)
    assert plan.status.converged
    assert plan.status.inner_iterations < 200


def test_a_single_column_takes_all_mass() -> None:
    plan = solve(unit_rows(5, 8, 0), unit_rows(1, 8, 1), torch.full((5,), (1 + 5e-5) / 5), structure_weight=0.5)
    torch.testing.assert_close(plan.dense(), torch.full((5, 1), 0.2, dtype=torch.float64))


@pytest.mark.parametrize("fixed_iterations", [False, True])
def test_rows_without_mass_may_be_of_a_class_without_columns(fixed_iterations: bool) -> None:
    p = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    plan = solve(
        unit_rows(3, 4, 0),
        unit_rows(4, 4, 1),
        p,
        row_labels=torch.tensor([0, 0, 1]),
        column_labels=torch.zeros(4, dtype=torch.int64),
        fixed_iterations=fixed_iterations,
        max_outer_iterations=20,
        max_inner_iterations=50,
    )
    assert row_error(plan, p) < 1e-6
    assert plan.conditional()[2].sum() == 0
    assert math.isfinite(plan.objective())


def test_a_tolerance_below_rounding_costs_few_hessians() -> None:
    x, y = unit_rows(64, 16, 0, torch.float32), unit_rows(256, 16, 1, torch.float32)
    plan = solve(x, y, epsilon=0.05, tolerance=1e-9)
    assert not plan.status.converged
    assert row_error(plan, 1 / 64) < 1e-5
    assert plan.status.hessians < 60


def test_tolerance_bounds_the_state_error_when_linearisations_contract_slowly() -> None:
    x, y = unit_rows(30, 8, 6), unit_rows(40, 8, 7)
    options = {"structure_weight": 0.9, "epsilon": 0.05}
    loose = solve(x, y, **options, tolerance=1e-3, max_outer_iterations=3000)
    tight = solve(x, y, **options, tolerance=1e-9, max_outer_iterations=3000)
    assert tight.status.converged
    assert float(torch.linalg.vector_norm(loose.state - tight.state) / torch.linalg.vector_norm(tight.state)) < 5e-3


def test_reported_error_is_the_plans_where_iterations_end_in_the_log_domain() -> None:
    x, y = unit_rows(64, 16, 0), unit_rows(256, 16, 1)
    for limit in range(1, 12):
        plan = solve(x, y, structure_weight=0.0, epsilon=1e-3, max_inner_iterations=limit)
        T = plan.dense()
        error = float((T.sum(dim=1) - 1 / 64).abs().sum() + (T.sum(dim=0) - 1 / 256).abs().sum())
        assert plan.status.marginal_error == pytest.approx(error, rel=1e-3, abs=1e-9)


def test_sums_of_half_precision_features_do_not_overflow() -> None:
    y = unit_rows(30_000, 16, 1, torch.float32).abs().half()
    assert not torch.isfinite(y.sum())
    plan = solve(y[:8], y, epsilon=0.5, tolerance=1e-4, max_outer_iterations=3)
    assert torch.isfinite(plan.potentials.f).all()


def test_plan_carries_no_gradient() -> None:
    x, y = unit_rows(4, 3, 0).requires_grad_(), unit_rows(5, 3, 1).requires_grad_()
    assert not solve(x, y).dense().requires_grad


EYE = torch.eye(2, dtype=torch.float64)
REFUSED = {
    "geometry": {"geometry": "manhattan"},
    "tolerance must": {"tolerance": 0.0},
    "tolerance must be": {"tolerance": math.nan},
    "max_inner_iterations": {"max_inner_iterations": 0},
    "max_outer_iterations": {"max_outer_iterations": 0},
    "epsilon": {"epsilon": 1e-40},
    "start.g must be": {"start": Start(torch.zeros(1, dtype=torch.float64))},
    "start.g must not": {"start": Start(torch.full((2,), math.nan, dtype=torch.float64))},
    "start.state must be": {"start": Start(None, torch.zeros(3, 3, dtype=torch.float64))},
    "start.state must not": {"start": Start(None, torch.full((2, 2), math.nan, dtype=torch.float64))},
}


@pytest.mark.parametrize("words", REFUSED)
def test_invalid_options_are_refused_by_name(words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}.*"):
        solve(EYE, EYE, **REFUSED[words])


def test_features_must_be_real_floating_point_numbers() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        solve(EYE.to(torch.complex64), EYE.to(torch.complex64))
