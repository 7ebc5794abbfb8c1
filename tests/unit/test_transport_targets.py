"""Targets of a plan's rows: heaviest column, drawn column."""

import pytest
import torch
from torch import Tensor

from gfgw_prod.transport import Plan, fused_gromov_wasserstein
from gfgw_prod.transport.columns import Columns
from gfgw_prod.transport.coupling import Options
from gfgw_prod.transport.pot import solve_with_pot

from ..features import unit_rows

BELOW_ONE = 1 - 2**-24  # the largest number torch.rand gives


def plan_of(rows: int, columns: int, *, q: Tensor | None = None) -> Plan:
    return fused_gromov_wasserstein(
        unit_rows(rows, 3, 0, torch.float32),
        unit_rows(columns, 3, 1, torch.float32),
        None,
        q,
        structure_weight=0.2,
        epsilon=0.3,
    )


def test_conditional_is_the_plan_divided_by_its_row_marginal() -> None:
    plan = plan_of(5, 8)
    torch.testing.assert_close(plan.conditional(), plan.dense() * 5, atol=1e-5, rtol=0)
    torch.testing.assert_close(plan.conditional().sum(dim=1), torch.ones(5))


def test_argmax_is_the_heaviest_column() -> None:
    plan = plan_of(30, 50)
    assert torch.equal(plan.argmax(), plan.dense().argmax(dim=1))


def test_drawn_columns_follow_the_conditional_distribution() -> None:
    plan, draws = plan_of(4, 7), 2000
    counts = torch.zeros(4, 7)
    for k in range(draws):
        uniform = torch.full((4,), (k + 0.5) / draws)  # an even grid, so frequencies are exact to a draw or two
        counts[torch.arange(4), plan.sample(uniform)] += 1
    torch.testing.assert_close(counts / draws, plan.conditional(), atol=2 / draws, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, BELOW_ONE])
def test_drawn_columns_have_mass_at_both_ends(uniform: float) -> None:
    q = torch.tensor([0, 0.2, 0.2, 0.2, 0.2, 0.2, 0])
    columns = plan_of(4, 7, q=q).sample(torch.full((4,), uniform))
    assert columns.tolist() == [1 if uniform == 0 else 5] * 4


def test_pots_plan_gives_the_same_targets() -> None:
    plan, x, y = plan_of(20, 30), unit_rows(20, 3, 0, torch.float32), unit_rows(30, 3, 1, torch.float32)
    options = Options(0.2, 0.3, max_outer_iterations=100, max_inner_iterations=5000, tolerance=1e-8)
    dense = solve_with_pot(x, torch.full((20,), 1 / 20), Columns(y, torch.full((30,), 1 / 30)), options)
    uniforms = torch.rand(20, generator=torch.Generator().manual_seed(1))
    assert dense.status.converged
    torch.testing.assert_close(dense.conditional(), plan.conditional(), atol=1e-4, rtol=0)
    assert torch.equal(dense.argmax(), plan.argmax())
    assert torch.equal(dense.sample(uniforms), plan.sample(uniforms))
    assert dense.sharpness() == pytest.approx(plan.sharpness(), abs=1e-4)
