"""From a plan's rows to targets: heaviest column, drawn column, mixture."""

import pytest
import torch

from gfgw_prod.transport import Plan, fused_gromov_wasserstein
from gfgw_prod.transport.pot import pot_plan

BELOW_ONE = 1 - 2**-24  # the largest number torch.rand gives


def plan_of(rows: int, columns: int, *, q: torch.Tensor | None = None, forbidden: torch.Tensor | None = None) -> Plan:
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(rows, 3, generator=generator))
    y = torch.nn.functional.normalize(torch.randn(columns, 3, generator=generator))
    return fused_gromov_wasserstein(x, y, None, q, structure_weight=0.2, epsilon=0.3, forbidden=forbidden)


def test_conditional_is_the_plan_divided_by_its_row_marginal() -> None:
    plan = plan_of(5, 8)
    torch.testing.assert_close(plan.conditional(), plan.dense() / plan.p[:, None], atol=1e-5, rtol=0)
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
    forbidden = torch.zeros(4, 7, dtype=torch.bool)
    forbidden[:, [0, 6]] = True
    q = torch.tensor([0, 0.2, 0.2, 0.2, 0.2, 0.2, 0])
    columns = plan_of(4, 7, q=q, forbidden=forbidden).sample(torch.full((4,), uniform))
    assert columns.tolist() == [1 if uniform == 0 else 5] * 4


def test_pots_plan_names_the_same_targets() -> None:
    plan = plan_of(20, 30)
    dense = pot_plan(
        plan.x,
        plan.y,
        plan.p,
        plan.q,
        structure_weight=0.2,
        epsilon=0.3,
        max_outer_iterations=100,
        max_inner_iterations=5000,
        tolerance=1e-8,
    )
    uniforms = torch.rand(20, generator=torch.Generator().manual_seed(1))
    assert dense.status.converged
    torch.testing.assert_close(dense.conditional(), plan.conditional(), atol=1e-4, rtol=0)
    assert torch.equal(dense.argmax(), plan.argmax())
    assert torch.equal(dense.sample(uniforms), plan.sample(uniforms))
