"""The factored solver against POT's dense one, in float64."""

import ot
import pytest
import torch
from torch import Tensor

from gfgw_prod.transport import Plan, fused_gromov_wasserstein

from ..features import close_rows, marginal


def costs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return 1 - x @ y.T, 1 - x @ x.T, 1 - y @ y.T


def solve(x: Tensor, y: Tensor, p: Tensor | None, q: Tensor | None, lam: float, epsilon: float) -> Plan:
    return fused_gromov_wasserstein(
        x,
        y,
        p,
        q,
        structure_weight=lam,
        epsilon=epsilon,
        tolerance=1e-11,
        max_outer_iterations=500,
        max_inner_iterations=20_000,
    )


def pot_fgw(x: Tensor, y: Tensor, p: Tensor, q: Tensor, lam: float, epsilon: float) -> Tensor:
    cost, cost_x, cost_y = costs(x, y)
    if lam == 0:
        return ot.sinkhorn(p, q, cost, epsilon, method="sinkhorn_log", stopThr=1e-12, numItermax=20_000)
    return ot.gromov.entropic_fused_gromov_wasserstein(
        cost,
        cost_x,
        cost_y,
        p,
        q,
        loss_fun="square_loss",
        epsilon=epsilon,
        alpha=lam,
        tol=1e-12,
        max_iter=100,
        numItermax=20_000,
        stopThr=1e-12,
    )


def dense_objective(x: Tensor, y: Tensor, T: Tensor, lam: float, epsilon: float) -> float:
    cost, cost_x, cost_y = costs(x, y)
    distortion = (cost_x[:, None, :, None] - cost_y[None, :, None, :]).square()
    structure = torch.einsum("ijkl,ij,kl->", distortion, T, T)
    return float((1 - lam) * (cost * T).sum() + lam * structure + epsilon * torch.special.xlogy(T, T).sum())


@pytest.mark.parametrize("sizes", [(12, 27), (16, 16), (20, 9)], ids=str)  # rows, columns
@pytest.mark.parametrize("epsilon", [0.5, 0.05, 0.01])
@pytest.mark.parametrize("lam", [0.0, 0.125, 0.5])
def test_plan_is_pots_plan(lam: float, epsilon: float, sizes: tuple[int, int]) -> None:
    n, N = sizes
    x, y = close_rows(n, 16, seed=5), close_rows(N, 16, seed=6)
    p, q = x.new_full((n,), 1 / n), y.new_full((N,), 1 / N)
    plan = solve(x, y, None, None, lam, epsilon)
    assert plan.status.converged
    assert (plan.dense() - pot_fgw(x, y, p, q, lam, epsilon)).abs().sum() <= 1e-8


@pytest.mark.parametrize("lam", [0.0, 0.125, 0.5])
def test_plan_with_given_marginals_is_pots_plan(lam: float) -> None:
    x, y, p, q = close_rows(12, 8, seed=3), close_rows(19, 8, seed=4), marginal(12, seed=5), marginal(19, seed=6)
    plan = solve(x, y, p, q, lam, 0.05)
    assert (plan.dense() - pot_fgw(x, y, p, q, lam, 0.05)).abs().sum() <= 1e-8


@pytest.mark.parametrize("epsilon", [0.5, 0.05, 0.01])
def test_objective_is_no_worse_than_pots_where_there_are_several_optima(epsilon: float) -> None:
    x, y, p, q = close_rows(12, 8, seed=3), close_rows(19, 8, seed=4), marginal(12, seed=5), marginal(19, seed=6)
    plan, T = solve(x, y, p, q, 0.9, epsilon), pot_fgw(x, y, p, q, 0.9, epsilon)
    assert plan.objective() <= dense_objective(x, y, T, 0.9, epsilon) + 1e-9


@pytest.mark.parametrize("lam", [0.0, 0.125, 0.5])
@pytest.mark.parametrize("epsilon", [0.5, 0.05, 0.01])
def test_plan_of_hundreds_of_rows_is_pots_plan(lam: float, epsilon: float) -> None:
    x, y = close_rows(96, 32, seed=15), close_rows(384, 32, seed=16)
    p, q = marginal(96, seed=17), marginal(384, seed=18)
    plan = solve(x, y, p, q, lam, epsilon)
    assert (plan.dense() - pot_fgw(x, y, p, q, lam, epsilon)).abs().sum() <= 1e-8


@pytest.mark.parametrize("lam", [0.0, 0.125, 1.0])
def test_objective_is_the_dense_formula(lam: float) -> None:
    x, y, p, q = close_rows(9, 6, seed=7), close_rows(14, 6, seed=8), marginal(9, seed=9), marginal(14, seed=10)
    plan = solve(x, y, p, q, lam, 0.1)
    assert plan.objective() == pytest.approx(dense_objective(x, y, plan.dense(), lam, 0.1), abs=1e-9)


def test_objective_skips_rows_and_columns_without_mass() -> None:
    x, y, p, q = close_rows(5, 4, seed=11), close_rows(6, 4, seed=12), marginal(5, seed=13), marginal(6, seed=14)
    p_zero, q_zero = torch.cat([p, p.new_zeros(1)]), torch.cat([q, q.new_zeros(2)])
    x_more, y_more = torch.cat([x, x[:1]]), torch.cat([y, y[:2]])
    padded = solve(x_more, y_more, p_zero, q_zero, 0.3, 0.1)
    assert padded.objective() == pytest.approx(solve(x, y, p, q, 0.3, 0.1).objective(), abs=1e-9)


def test_structure_weight_changes_the_plan() -> None:
    x, y = close_rows(12, 8, seed=1), close_rows(27, 8, seed=2)
    plain, fused = (solve(x, y, None, None, lam, 0.05).dense() for lam in (0.0, 0.5))
    assert (plain - fused).abs().sum() > 0.1
