"""Properties of every plan: marginals, symmetry, special cases, single precision, refused input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gfgw_prod.transport import Plan, Start, fused_gromov_wasserstein
from gfgw_prod.transport.columns import Columns
from gfgw_prod.transport.geometry import Cosine

from ..features import marginal, unit_rows

seeds = st.integers(0, 2**31)
lambdas = st.floats(0, 0.6)
epsilons = st.floats(0.1, 2)


def solve(x: Tensor, y: Tensor, p: Tensor | None = None, q: Tensor | None = None, **options: object) -> Plan:
    chosen = {"structure_weight": 0.2, "epsilon": 0.1, "tolerance": 1e-10, "max_inner_iterations": 20_000} | options
    return fused_gromov_wasserstein(x, y, p, q, **chosen)


@given(n=st.integers(1, 9), N=st.integers(1, 12), dim=st.integers(1, 5), seed=seeds, lam=st.floats(0, 1), eps=epsilons)
def test_plan_has_the_marginals(n: int, N: int, dim: int, seed: int, lam: float, eps: float) -> None:
    p, q = marginal(n, seed), marginal(N, seed + 1)
    plan = solve(unit_rows(n, dim, seed), unit_rows(N, dim, seed + 1), p, q, structure_weight=lam, epsilon=eps)
    T = plan.dense()
    assert (T >= 0).all()
    assert (T.sum(dim=0) - q).abs().sum() <= 1e-12
    assert float((T.sum(dim=1) - p).abs().sum()) == pytest.approx(plan.status.marginal_error, abs=1e-12)
    assert plan.status.marginal_error <= 1e-10


@given(seed=seeds, lam=lambdas, eps=epsilons, order=st.permutations(range(7)))
def test_permuted_rows_permute_the_plan(seed: int, lam: float, eps: float, order: list[int]) -> None:
    x, y, p, q = unit_rows(7, 4, seed), unit_rows(10, 4, seed + 1), marginal(7, seed), marginal(10, seed + 1)
    plan = solve(x, y, p, q, structure_weight=lam, epsilon=eps).dense()
    permuted = solve(x[order], y, p[order], q, structure_weight=lam, epsilon=eps).dense()
    torch.testing.assert_close(permuted, plan[order], atol=1e-7, rtol=0)


@given(seed=seeds, lam=lambdas, eps=epsilons)
def test_duplicated_rows_get_equal_rows_of_the_plan(seed: int, lam: float, eps: float) -> None:
    x, y = unit_rows(4, 3, seed), unit_rows(6, 3, seed + 1)
    T = solve(torch.cat([x, x]), y, structure_weight=lam, epsilon=eps).dense()
    torch.testing.assert_close(T[:4], T[4:], atol=1e-12, rtol=0)


@given(N=st.integers(1, 12), seed=seeds, lam=lambdas, eps=epsilons)
def test_one_row_takes_every_column_and_one_column_every_row(N: int, seed: int, lam: float, eps: float) -> None:
    one, many, q = unit_rows(1, 3, seed), unit_rows(N, 3, seed + 1), marginal(N, seed)
    row = solve(one, many, None, q, structure_weight=lam, epsilon=eps).dense()
    column = solve(many, one, q, None, structure_weight=lam, epsilon=eps).dense()
    torch.testing.assert_close(row, q[None, :], atol=1e-9, rtol=0)
    torch.testing.assert_close(column, q[:, None], atol=1e-9, rtol=0)


@given(n=st.integers(1, 6), N=st.integers(1, 6), seed=seeds, lam=st.floats(0, 1), eps=epsilons)
def test_equal_features_give_the_independent_coupling(n: int, N: int, seed: int, lam: float, eps: float) -> None:
    x, y, p, q = (
        unit_rows(1, 3, seed).expand(n, 3),
        unit_rows(1, 3, seed + 1).expand(N, 3),
        marginal(n, 1),
        marginal(N, 2),
    )
    T = solve(x, y, p, q, structure_weight=lam, epsilon=eps).dense()
    torch.testing.assert_close(T, torch.outer(p, q), atol=1e-10, rtol=0)


@given(seed=seeds, lam=lambdas, eps=epsilons)
def test_rows_and_columns_without_mass_stay_empty_and_change_nothing(seed: int, lam: float, eps: float) -> None:
    x, y, p, q = unit_rows(5, 4, seed), unit_rows(8, 4, seed + 1), marginal(5, seed), marginal(8, seed + 1)
    p[2] = q[0] = q[7] = 0
    p, q = p / p.sum(), q / q.sum()
    T = solve(x, y, p, q, structure_weight=lam, epsilon=eps).dense()
    rows, columns = [0, 1, 3, 4], list(range(1, 7))
    smaller = solve(x[rows], y[columns], p[rows], q[columns], structure_weight=lam, epsilon=eps).dense()
    assert T[2].sum() == 0
    assert T[:, [0, 7]].sum() == 0
    torch.testing.assert_close(T[rows][:, columns], smaller, atol=1e-8, rtol=0)


@pytest.mark.parametrize("lam", [0.0, 0.125])
def test_single_precision_at_a_tiny_epsilon_is_finite_and_reports_its_error(lam: float) -> None:
    x, y = unit_rows(64, 32, 0, torch.float32), unit_rows(300, 32, 1, torch.float32)
    plan = solve(x, y, structure_weight=lam, epsilon=0.001, tolerance=1e-4, max_inner_iterations=2000)
    T = plan.dense()
    assert torch.isfinite(T).all()
    assert (T.sum(dim=1) > 0).all(), "a row was lost"
    error = float((T.sum(dim=1) - 1 / 64).abs().sum())
    assert error == pytest.approx(plan.status.marginal_error, abs=1e-3)
    assert math.isfinite(plan.objective())


def test_too_few_iterations_are_reported_as_not_converged() -> None:
    plan = solve(unit_rows(20, 8, 0), unit_rows(30, 8, 1), epsilon=0.01, max_inner_iterations=2, max_outer_iterations=2)
    assert not plan.status.converged
    assert plan.status.outer_iterations == 2
    assert plan.status.inner_iterations == 4
    assert plan.status.marginal_error > 1e-10


def test_starting_from_the_solution_takes_fewer_iterations() -> None:
    x, y = unit_rows(20, 8, 0), unit_rows(30, 8, 1)
    cold = solve(x, y, structure_weight=0.0, epsilon=0.02)
    warm = solve(x, y, structure_weight=0.0, epsilon=0.02, start=Start(cold.potentials.g * 0.02))
    assert warm.status.inner_iterations < cold.status.inner_iterations
    torch.testing.assert_close(warm.dense(), cold.dense(), atol=1e-9, rtol=0)


def test_pairs_of_different_classes_have_no_mass_and_the_marginals_hold() -> None:
    row_class, column_class = torch.arange(8) % 2, torch.arange(12) % 2
    forbidden = row_class[:, None] != column_class[None, :]
    plan = solve(unit_rows(8, 4, 0), unit_rows(12, 4, 1), row_labels=row_class, column_labels=column_class)
    T = plan.dense()
    assert T[forbidden].sum() == 0
    torch.testing.assert_close(T.sum(dim=1), T.new_full((8,), 1 / 8), atol=1e-10, rtol=0)
    torch.testing.assert_close(T.sum(dim=0), T.new_full((12,), 1 / 12), atol=1e-10, rtol=0)
    assert not forbidden[torch.arange(8), plan.argmax()].any()


NAN_ROW = torch.tensor([[1.0, math.nan]])
INPUTS = {
    "nan": (NAN_ROW, torch.eye(2), None, None, {}),
    "infinity": (torch.eye(2), torch.tensor([[1.0, math.inf]]), None, None, {}),
    "widths": (torch.eye(2), torch.eye(3), None, None, {}),
    "not_a_matrix": (torch.ones(2), torch.eye(2), None, None, {}),
    "no_rows": (torch.empty(0, 2), torch.eye(2), None, None, {}),
    "no_columns": (torch.eye(2), torch.empty(0, 2), None, None, {}),
    "p_too_long": (torch.eye(2), torch.eye(2), torch.full((3,), 1 / 3), None, {}),
    "p_negative": (torch.eye(2), torch.eye(2), torch.tensor([1.5, -0.5]), None, {}),
    "q_sums_to_2": (torch.eye(2), torch.eye(2), None, torch.ones(2), {}),
    "q_nan": (torch.eye(2), torch.eye(2), None, torch.tensor([math.nan, 0.5]), {}),
    "epsilon_0": (torch.eye(2), torch.eye(2), None, None, {"epsilon": 0.0}),
    "epsilon_nan": (torch.eye(2), torch.eye(2), None, None, {"epsilon": math.nan}),
    "lambda_negative": (torch.eye(2), torch.eye(2), None, None, {"structure_weight": -0.1}),
    "lambda_above_1": (torch.eye(2), torch.eye(2), None, None, {"structure_weight": 1.1}),
    "labels_of_rows_alone": (torch.eye(2), torch.eye(2), None, None, {"row_labels": torch.zeros(2)}),
    "labels_too_long": (
        torch.eye(2),
        torch.eye(2),
        None,
        None,
        {"row_labels": torch.zeros(2), "column_labels": torch.zeros(3)},
    ),
    "class_without_columns": (
        torch.eye(2),
        torch.eye(2),
        None,
        None,
        {"row_labels": torch.tensor([0, 1]), "column_labels": torch.tensor([0, 0])},
    ),
    "class_of_other_mass": (
        torch.eye(2),
        torch.eye(3)[:, :2],
        None,
        None,
        {"row_labels": torch.tensor([0, 1]), "column_labels": torch.tensor([0, 0, 1])},
    ),
    "lambda_nan": (torch.eye(2), torch.eye(2), None, None, {"structure_weight": math.nan}),
}


@pytest.mark.parametrize("given_input", INPUTS.values(), ids=INPUTS)
def test_bad_input_is_refused(given_input: tuple) -> None:
    x, y, p, q, options = given_input
    with pytest.raises(ValueError, match=r"x and y|must|together|class"):
        solve(x, y, p, q, **options)


def test_cold_start_begins_at_the_independent_coupling() -> None:
    x, y = unit_rows(5, 4, seed=0), unit_rows(7, 4, seed=1)
    p, q = x.new_full((5,), 1 / 5), x.new_full((7,), 1 / 7)
    geometry = Cosine(x, Columns(y, q), p, None, noise_term=0.1 * x)
    state, logits = geometry.cold_start(0.3, 0.05)
    torch.testing.assert_close(state, x.T @ torch.outer(p, q) @ y)
    found, expected = x.new_empty(2, 5, 7)
    logits.into(slice(0, 7), found)
    geometry.logits(state, 0.3, 0.05).into(slice(0, 7), expected)
    torch.testing.assert_close(found, expected)
