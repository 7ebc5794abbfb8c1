"""A step's matching: candidates by scope, targets by kind, classes kept apart."""

import pytest
import torch
from torch import Tensor

from gfgw_prod.config import TransportSettings
from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.features.extractors import PixelFeatures
from gfgw_prod.transport.matching import Match, Matcher

SLOTS = 12
EXACT = {"tolerance": 1e-5, "inner_iterations": 5000, "outer_iterations": 100, "epsilon": 0.05, "epsilon_end": 0.05}


def bank_of(table: Table, world: World) -> FeatureBank:
    bank = FeatureBank(len(table), 16, world)
    bank.encode(table, PixelFeatures(table.image_shape), 7, on_block=lambda rows: None)
    return bank


def generated() -> Tensor:
    rows = torch.randn(SLOTS, 16, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.normalize(rows)


def match_of(table: Table, world: World, *, conditional: bool = False, step: int = 0, **options: object) -> Match:
    settings = TransportSettings(**(EXACT | options))
    matcher = Matcher(settings, bank_of(table, world), table.labels, seed=5, conditional=conditional)
    uniforms = torch.rand(SLOTS, generator=torch.Generator().manual_seed(4))
    return matcher.match(generated(), torch.arange(SLOTS), torch.arange(SLOTS) % 3, uniforms, step=step, images=0)


def test_full_scope_couples_to_every_row(table: Table, alone: World) -> None:
    match = match_of(table, alone, scope="full")
    assert torch.equal(match.candidates, torch.arange(60))
    torch.testing.assert_close(match.features, PixelFeatures((1, 4, 4))(table.rows(torch.arange(60))))


def test_subset_scope_draws_other_rows_each_step_and_the_same_again(table: Table, alone: World) -> None:
    first, again = (match_of(table, alone, scope="subset", subset_rows=20, step=0).candidates for _ in range(2))
    later = match_of(table, alone, scope="subset", subset_rows=20, step=1).candidates
    assert torch.equal(first, again)
    assert len(set(first.tolist())) == 20
    assert not set(first.tolist()) & set(later.tolist())  # an epoch of draws uses every row once


def test_subset_larger_than_the_bank_is_the_bank(table: Table, alone: World) -> None:
    match = match_of(table, alone, scope="subset", subset_rows=1000)
    assert sorted(match.candidates.tolist()) == list(range(60))


@pytest.mark.parametrize("target", ["argmax", "sample"])
def test_targets_are_images_and_features_of_the_chosen_rows(table: Table, alone: World, target: str) -> None:
    match = match_of(table, alone, scope="subset", subset_rows=20, target=target)
    ids = match.candidates[match.chosen]
    assert torch.equal(match.target_images(table, slice(4, 9)), table.rows(ids[4:9]))
    torch.testing.assert_close(match.target_features(slice(4, 9)), PixelFeatures((1, 4, 4))(table.rows(ids[4:9])))


def test_barycentric_targets_are_mixtures(table: Table, alone: World) -> None:
    match = match_of(table, alone, scope="full", target="barycentric")
    images = table.rows(torch.arange(60))
    expected = torch.einsum("bm,mchw->bchw", match.weights[2:6], images)
    torch.testing.assert_close(match.weights.sum(dim=1), torch.ones(SLOTS))
    torch.testing.assert_close(match.target_images(table, slice(2, 6)), expected)
    features = match.target_features(slice(2, 6))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))


def test_argmax_prefers_a_generated_image_own_neighbour(table: Table, alone: World) -> None:
    settings = TransportSettings(scope="full", structure_weight=0, **(EXACT | {"epsilon": 0.01, "epsilon_end": 0.01}))
    bank = bank_of(table, alone)
    matcher = Matcher(settings, bank, table.labels, seed=0, conditional=False)
    match = matcher.match(bank.local.clone(), torch.arange(60), table.labels, torch.zeros(60), step=0, images=0)
    assert torch.equal(match.chosen, torch.arange(60))


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_pot_backend_chooses_the_same_targets(table: Table, alone: World, lam: float) -> None:
    options = {"scope": "full", "structure_weight": lam, "structure_weight_end": lam}
    native, pot = (match_of(table, alone, backend=backend, **options) for backend in ("native", "pot"))
    assert native.status.converged
    assert pot.status.converged
    assert torch.equal(native.chosen, pot.chosen)


@pytest.mark.parametrize("target", ["argmax", "sample"])
@pytest.mark.parametrize("scope", ["full", "subset"])
def test_conditional_slots_get_targets_of_their_class(table: Table, alone: World, scope: str, target: str) -> None:
    match = match_of(table, alone, conditional=True, scope=scope, subset_rows=30, target=target)
    assert match.status.converged
    assert torch.equal(table.labels[match.candidates[match.chosen]], torch.arange(SLOTS) % 3)


def test_conditional_mixtures_hold_only_rows_of_the_slots_class(table: Table, alone: World) -> None:
    match = match_of(table, alone, conditional=True, scope="full", target="barycentric")
    other = (torch.arange(SLOTS) % 3)[:, None] != table.labels[None, :]
    assert match.weights[other].sum() == 0
    torch.testing.assert_close(match.weights.sum(dim=1), torch.ones(SLOTS))


def test_slots_of_a_class_that_was_not_drawn_still_get_targets_of_it(table: Table, alone: World) -> None:
    match = match_of(table, alone, conditional=True, scope="subset", subset_rows=1)
    assert len(match.candidates) > 1
    assert torch.equal(table.labels[match.candidates[match.chosen]], torch.arange(SLOTS) % 3)


def test_epsilon_and_lambda_follow_the_images(table: Table, alone: World) -> None:
    settings = TransportSettings()
    matcher = Matcher(settings, bank_of(table, alone), table.labels, seed=0, conditional=False)
    assert matcher.epsilon(0) == pytest.approx(0.1)
    assert matcher.epsilon(1_600_000) == pytest.approx(0.01)
    assert matcher.structure_weight(0) == pytest.approx(0.1)
    assert matcher.structure_weight(800_000) == pytest.approx(0.3)
