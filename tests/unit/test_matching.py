"""A step's matching: candidates by scope, targets by kind, classes kept apart."""

import pytest
import torch
from torch import Tensor

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.features.extractors import PixelFeatures
from gfgw_prod.settings.transport import TransportSettings
from gfgw_prod.transport.matching import Match, Matcher
from gfgw_prod.transport.plan import Plan
from gfgw_prod.transport.usage import Usage

from ..matching import match_with, matcher_with

SLOTS = 12
EXACT = {"tolerance": 1e-5, "inner_iterations": 5000, "outer_iterations": 100, "epsilon": 0.05, "epsilon_end": 0.05}


def bank_of(table: Table, world: World) -> FeatureBank:
    bank = FeatureBank(len(table), 16, world)
    bank.encode(table, PixelFeatures(table.image_shape), 7, on_block=lambda rows: None)
    return bank


def generated() -> Tensor:
    rows = torch.randn(SLOTS, 16, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.normalize(rows)


def matcher_of(table: Table, world: World, *, conditional: bool = False, **options: object) -> Matcher:
    settings = TransportSettings(**(EXACT | options))
    return matcher_with(settings, bank_of(table, world), table, seed=5, conditional=conditional)


def match_of(table: Table, world: World, *, conditional: bool = False, step: int = 0, **options: object) -> Match:
    uniforms = torch.rand(SLOTS, generator=torch.Generator().manual_seed(4))
    matcher = matcher_of(table, world, conditional=conditional, **options)
    return match_with(matcher, generated(), torch.arange(SLOTS), torch.arange(SLOTS) % 3, uniforms, step)


def test_full_scope_couples_to_every_row(table: Table, alone: World) -> None:
    coupling = match_of(table, alone, scope="full").coupling
    assert isinstance(coupling, Plan)
    assert coupling.dense().shape == (SLOTS, 60)


def test_subset_scope_draws_other_rows_each_step_and_the_same_again(table: Table, alone: World) -> None:
    first, again, later = (
        set(match_of(table, alone, scope="subset", subset_rows=20, step=step, target="sample").rows.tolist())
        for step in (0, 0, 1)
    )
    assert first == again
    assert not first & later  # an epoch of draws uses every row once


def test_subset_larger_than_the_bank_is_the_bank(table: Table, alone: World) -> None:
    subset, full = (match_of(table, alone, scope=scope, subset_rows=1000) for scope in ("subset", "full"))
    assert torch.equal(subset.rows, full.rows)


@pytest.mark.parametrize("target", ["argmax", "sample", "independent"])
@pytest.mark.parametrize("scope", ["full", "subset"])
def test_target_features_are_those_of_the_chosen_rows(table: Table, alone: World, scope: str, target: str) -> None:
    match = match_of(table, alone, scope=scope, subset_rows=20, target=target)
    torch.testing.assert_close(match.features, PixelFeatures((1, 4, 4))(table.rows(match.rows)))


def test_argmax_prefers_a_generated_image_own_neighbour(table: Table, alone: World) -> None:
    matcher = matcher_of(table, alone, scope="full", structure_weight=0, epsilon=0.01, epsilon_end=0.01)
    rows = torch.arange(60)
    match = match_with(matcher, matcher.bank.local.clone(), rows, table.labels, torch.zeros(60), 0)
    assert torch.equal(match.rows, rows)


@pytest.mark.parametrize("scope", ["full", "subset"])
@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_pot_backend_chooses_the_same_targets(table: Table, alone: World, lam: float, scope: str) -> None:
    options = {
        "scope": scope,
        "subset_rows": 30,
        "structure_weight": lam,
        "structure_weight_end": lam,
    }
    native, pot = (match_of(table, alone, backend=backend, **options) for backend in ("native", "pot"))
    assert torch.equal(native.rows, pot.rows)
    assert native.values()["transport/converged"] == pot.values()["transport/converged"] == 1


def test_euclidean_geometry_couples_as_pot_does(table: Table, alone: World) -> None:
    options = {"scope": "subset", "subset_rows": 30, "geometry": "euclidean", "epsilon": 0.1, "epsilon_end": 0.1}
    native, pot = (match_of(table, alone, backend=backend, **options) for backend in ("native", "pot"))
    assert torch.equal(native.rows, pot.rows)


@pytest.mark.parametrize("target", ["argmax", "sample"])
@pytest.mark.parametrize("dual", ["fresh", "persistent"])
@pytest.mark.parametrize("scope", ["full", "subset"])
def test_conditional_slots_get_targets_of_their_class(
    table: Table, alone: World, scope: str, dual: str, target: str
) -> None:
    match = match_of(table, alone, conditional=True, scope=scope, subset_rows=30, target=target, dual=dual)
    assert torch.equal(table.labels[match.rows], torch.arange(SLOTS) % 3)


def test_conditional_plans_hold_only_rows_of_the_slots_class(table: Table, alone: World) -> None:
    coupling = match_of(table, alone, conditional=True, scope="full").coupling
    assert isinstance(coupling, Plan)
    other = (torch.arange(SLOTS) % 3)[:, None] != table.labels[None, :]
    assert coupling.conditional()[other].sum() == 0


def test_slots_of_a_class_that_was_not_drawn_still_get_targets_of_it(table: Table, alone: World) -> None:
    match = match_of(table, alone, conditional=True, scope="subset", subset_rows=1)
    assert torch.equal(table.labels[match.rows], torch.arange(SLOTS) % 3)


def test_share_of_the_bank_counts_targets_of_the_last_epoch(alone: World) -> None:
    usage = Usage(10, alone)
    usage.mark(torch.tensor([3, 3, 4]), images=3)
    usage.mark(torch.tensor([4, 5]), images=6)
    assert usage.share(6) == pytest.approx(0.3)
    assert usage.share(13) == pytest.approx(0.2)  # row 3 was last used more than ten images ago
    assert usage.share(16) == 0


def test_noise_that_weighs_enough_chooses_the_targets_nearest_to_it(table: Table, alone: World) -> None:
    noise = torch.randn(SLOTS, 1, 4, 4, generator=torch.Generator().manual_seed(6))
    nearest = (noise.flatten(1) @ PixelFeatures((1, 4, 4))(table.rows(torch.arange(60))).T).argmax(dim=1)
    directions = torch.nn.functional.normalize(noise.flatten(1), dim=1)
    free = {
        "scope": "full",
        "dual": "persistent",
        "dual_balance": 0.0,
        "structure_weight": 0.0,
        "structure_weight_end": 0.0,
    }
    labels, uniforms = torch.zeros(SLOTS, dtype=torch.long), torch.rand(SLOTS)

    def rows(weight: float) -> Tensor:
        matcher = matcher_of(table, alone, noise_weight=weight, **free)
        slots = torch.arange(SLOTS)
        return match_with(matcher, generated(), slots, labels, uniforms, 0, directions).rows

    assert torch.equal(rows(100.0), nearest)
    assert not torch.equal(rows(0.0), nearest)
