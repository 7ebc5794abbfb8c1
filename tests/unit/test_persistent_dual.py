"""Persistent duals, with a fixed generator."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gfgw_prod.data.sources import Table, load_table
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.features.extractors import PixelFeatures
from gfgw_prod.settings.config import DataSettings
from gfgw_prod.settings.transport import TransportSettings
from gfgw_prod.transport.matching import Match, Matcher
from gfgw_prod.transport.plan import Plan

from ..matching import match_with, matcher_with

SLOTS, STEPS = 128, 56
LAST_EPOCHS = 28  # steps


@pytest.fixture(scope="module")
def digits() -> Table:
    return load_table(DataSettings(source="digits"))


def generated(table: Table, step: int) -> tuple[Tensor, Tensor]:
    """Features and classes of a fixed generator, which makes noisy digits and favours some of them."""
    favour = torch.rand(len(table), generator=torch.Generator().manual_seed(0)) ** 3
    generator = torch.Generator().manual_seed(step)
    rows = torch.multinomial(favour, SLOTS, generator=generator)
    noise = torch.randn(SLOTS, 64, generator=generator)
    return normalize(0.7 * table.rows(rows).flatten(1) + 0.3 * noise, dim=1), table.labels[rows]


def matcher_of(table: Table, world: World, dual: str, scope: str = "full") -> Matcher:
    settings = TransportSettings(
        scope=scope,
        subset_rows=600,
        dual=dual,
        epsilon=0.005,
        epsilon_end=0.005,
        structure_weight=0.2,
        tolerance=1e-2,
    )
    bank = FeatureBank(len(table), 64, world)
    bank.encode(table, PixelFeatures(table.image_shape), 128, on_block=lambda rows: None)
    return matcher_with(settings, bank, table, seed=3, conditional=True)


def match(matcher: Matcher, table: Table, step: int) -> Match:
    x, labels = generated(table, step)
    found = match_with(matcher, x, torch.arange(SLOTS), labels, torch.zeros(SLOTS), step)
    matcher.accept(found, images=(step + 1) * SLOTS)
    return found


def trained(table: Table, world: World, dual: str, scope: str = "full") -> tuple[Matcher, float, float]:
    """After all steps: the matcher, the unevenness of the targets of the last epochs, inner iterations per step."""
    matcher, counts, iterations = matcher_of(table, world, dual, scope), torch.zeros(len(table)), 0
    for step in range(STEPS):
        found = match(matcher, table, step)
        assert isinstance(found.coupling, Plan)
        iterations += found.coupling.status.inner_iterations
        if step >= STEPS - LAST_EPOCHS:
            counts += torch.bincount(found.rows, minlength=len(table))
    unevenness = float((counts / counts.sum() - 1 / len(table)).abs().sum())
    return matcher, unevenness, iterations / STEPS


def test_persistent_duals_use_the_bank_more_evenly_in_a_third_of_the_iterations(digits: Table, alone: World) -> None:
    fresh, uneven, many = trained(digits, alone, "fresh")
    persistent, less_uneven, few = trained(digits, alone, "persistent")
    assert less_uneven < 0.9 * uneven
    assert persistent.usage.share(STEPS * SLOTS) > fresh.usage.share(STEPS * SLOTS)
    assert 3 * few <= many


@pytest.mark.parametrize("scope", ["full", "subset"])
def test_potentials_are_kept_by_row_and_restored_by_name(digits: Table, alone: World, scope: str) -> None:
    matcher, _, _ = trained(digits, alone, "persistent", scope)
    other = matcher_of(digits, alone, "persistent", scope)
    for name, tensor in other.tensors().items():
        tensor.copy_(matcher.tensors()[name])
    assert matcher.tensors()["dual.potential"].flatten()[: len(digits)].ne(0).all()
    ours, theirs = (match(each, digits, STEPS) for each in (matcher, other))
    assert torch.equal(ours.rows, theirs.rows)
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in matcher.tensors().items())
    assert not torch.equal(match(matcher_of(digits, alone, "persistent", scope), digits, STEPS).rows, ours.rows)


def test_classes_that_a_batch_lacks_keep_their_potential(digits: Table, alone: World) -> None:
    matcher, _, _ = trained(digits, alone, "persistent")
    before = matcher.tensors()["dual.potential"].clone().flatten()[: len(digits)]
    x, _ = generated(digits, 0)
    threes = torch.full((SLOTS,), 3)
    found = match_with(matcher, x, torch.arange(SLOTS), threes, torch.zeros(SLOTS), STEPS)
    assert torch.equal(matcher.tensors()["dual.potential"].flatten()[: len(digits)], before), (
        "changed before the match was accepted"
    )
    matcher.accept(found, images=(STEPS + 1) * SLOTS)
    changed = matcher.tensors()["dual.potential"].flatten()[: len(digits)] != before
    assert torch.equal(changed, digits.labels == 3)
