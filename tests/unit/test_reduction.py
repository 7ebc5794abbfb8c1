"""Sums along one fixed tree, and norms of gradients."""

import math

import pytest
import torch
from torch import Tensor, nn

from gfgw_prod.distributed.cells import CellAssignment
from gfgw_prod.distributed.reduction import (
    TreeSum,
    gradient_norm,
    node_levels,
    pop_flat_gradient,
    scale_gradients,
    set_gradients,
    split_like,
)
from gfgw_prod.distributed.world import World


def leaves(count: int) -> list[Tensor]:
    """Numbers of very different magnitudes, so that the last bits depend on the order of addition."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(50, generator=generator) * 10.0 ** (index % 5 - 2) for index in range(count)]


def tree(parts: list[Tensor]) -> Tensor:
    """Reference: the largest power of two of leaves on the left, the rest on the right."""
    if len(parts) == 1:
        return parts[0]
    half = 1 << ((len(parts) - 1).bit_length() - 1)
    return tree(parts[:half]) + tree(parts[half:])


@pytest.mark.parametrize("count", [*range(1, 18), 33, 100])
def test_sum_runs_along_the_fixed_tree(count: int) -> None:
    total = TreeSum()
    for leaf in leaves(count):
        total.push(leaf)
    assert torch.equal(total.pop_total(), tree(leaves(count)))


def test_the_tree_is_not_a_running_sum() -> None:
    running = torch.zeros(50)
    for leaf in leaves(8):
        running = running + leaf
    assert not torch.equal(tree(leaves(8)), running)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 100])
def test_few_partial_sums_are_alive(count: int) -> None:
    total, most = TreeSum(), 0
    for leaf in leaves(count):
        total.push(leaf)
        most = max(most, len(total._nodes))
    assert most <= math.floor(math.log2(count)) + 1


@pytest.mark.parametrize(("count", "ranks"), [(8, 2), (8, 3), (8, 5), (48, 5), (13, 4), (100, 3), (7, 7)])
def test_sums_of_neighbouring_leaves_are_nodes_of_the_same_tree(count: int, ranks: int) -> None:
    """Every rank adds its own leaves to few nodes, and the sum of all ranks' nodes is the tree's total."""
    total, assignment = TreeSum(), CellAssignment(count, ranks)
    for rank in range(ranks):
        held = assignment.cells_by_rank[rank]
        own = TreeSum(held.start)
        for _ in range(2):  # pop_nodes starts a new sum
            for index in held:
                own.push(leaves(count)[index])
            nodes = own.pop_nodes()
        assert len(nodes) == len(node_levels(held)) <= 2 * math.log2(count)
        total.push_nodes(zip(nodes, node_levels(held), strict=True))
    assert torch.equal(total.pop_total(), tree(leaves(count)))


@pytest.mark.parametrize(("held", "expected"), [((0, 8), (3,)), ((3, 6), (0, 1)), ((5, 16), (0, 1, 3)), ((4, 4), ())])
def test_neighbouring_leaves_are_covered_by_the_fewest_nodes(held: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert node_levels(range(*held)) == expected


def test_leaves_are_unchanged_and_the_next_sum_starts_at_zero() -> None:
    total, parts = TreeSum(), leaves(5)
    for _ in range(2):
        for part in parts:
            total.push(part)
        assert torch.equal(total.pop_total(), tree(leaves(5)))
    assert all(torch.equal(part, fresh) for part, fresh in zip(parts, leaves(5), strict=True))


def test_pushed_tensor_may_be_overwritten() -> None:
    total, buffer = TreeSum(), torch.ones(3)
    total.push(buffer)
    buffer.fill_(100.0)
    total.push(torch.ones(3))
    assert torch.equal(total.pop_total(), torch.full((3,), 2.0))


def test_part_of_a_sum_is_the_sum_of_parts_and_leaves_the_sum_as_it_was() -> None:
    whole = TreeSum()
    for leaf in leaves(6):
        whole.push(leaf)
    part = whole.restricted(lambda flat: flat[10:20].clone())
    part.push(leaves(7)[6][10:20])
    assert torch.equal(part.pop_total(), tree([leaf[10:20] for leaf in leaves(7)]))
    assert torch.equal(whole.pop_total(), tree(leaves(6)))


def with_gradients(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter, gradient in zip(parameters, leaves(len(shapes)), strict=True):
        parameter.grad = gradient[: parameter.numel()].reshape(parameter.shape).clone()
    return parameters


def test_gradient_norm_is_torchs(alone: World) -> None:
    parameters = [*with_gradients((4, 2, 3), (7,), (5, 2)), nn.Parameter(torch.zeros(3))]
    expected = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    torch.testing.assert_close(gradient_norm(parameters, alone), expected)


def test_norm_of_a_nan_gradient_is_nan(alone: World) -> None:
    parameters = with_gradients((4, 2), (7,))
    parameters[1].grad[3] = math.nan
    assert gradient_norm(parameters, alone).isnan()


def test_scaled_gradients_have_the_scaled_norm(alone: World) -> None:
    parameters = [*with_gradients((4, 2), (7,)), nn.Parameter(torch.zeros(3))]
    norm = gradient_norm(parameters, alone)
    scale_gradients(parameters, 1 / norm)
    assert float(gradient_norm(parameters, alone)) == pytest.approx(1, rel=1e-5)


def test_flat_gradient_is_taken_and_given_back() -> None:
    parameters = with_gradients((4, 2, 3), (7,), (5, 2))
    before = [parameter.grad for parameter in parameters]
    flat = pop_flat_gradient(parameters)
    assert flat.shape == (24 + 7 + 10,)
    assert all(parameter.grad is None for parameter in parameters)
    set_gradients(parameters, flat)
    assert all(torch.equal(a.grad, b) for a, b in zip(parameters, before, strict=True) if a.grad is not None)


def test_split_undoes_flattening_and_drops_padding() -> None:
    parts = [torch.arange(6.0).view(2, 3), torch.arange(4.0), torch.ones(1, 2, 2)]
    flat = torch.cat([*(part.flatten() for part in parts), torch.zeros(3)])
    assert all(torch.equal(a, b) for a, b in zip(split_like(flat, parts), parts, strict=True))
