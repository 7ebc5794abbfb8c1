"""Potentials fitted to noise before training."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gfgw_prod.data.sources import Table, load_table
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.features.extractors import PixelFeatures
from gfgw_prod.settings.data import DataSettings
from gfgw_prod.settings.transport import TransportSettings
from gfgw_prod.transport.matching import Matcher

from ..matching import match_with, matcher_with

NOISE = 18_000  # about ten for each digit
SETTINGS = TransportSettings(
    scope="full", dual="fitted", epsilon=0.01, epsilon_end=0.01, structure_weight=0.0, structure_weight_end=0.0
)


@pytest.fixture(scope="module")
def digits() -> Table:
    return load_table(DataSettings(source="digits"))


def matcher_of(table: Table, world: World, *, conditional: bool) -> Matcher:
    bank = FeatureBank(len(table), 64, world)
    bank.encode(table, PixelFeatures(table.image_shape), 128, on_block=lambda rows: None)
    return matcher_with(SETTINGS, bank, table, seed=3, conditional=conditional)


def targets(matcher: Matcher, table: Table) -> tuple[Tensor, Tensor, Tensor]:
    """Row ids of the targets of much noise that the potential was not fitted to, its class ids, and the noise."""
    noise = normalize(torch.randn(NOISE, 64, generator=torch.Generator().manual_seed(11)), dim=1)
    labels = table.labels[torch.arange(NOISE) % len(table)]
    return match_with(matcher, noise, labels, labels, labels, 0, noise).rows, labels, noise


@pytest.mark.parametrize("conditional", [True, False])
def test_fitted_potential_uses_all_rows_equally(digits: Table, alone: World, conditional: bool) -> None:
    """Without it, rows in the middle of their class are hardly ever nearest to noise."""
    matcher = matcher_of(digits, alone, conditional=conditional)

    def unevenness() -> float:
        counts = torch.bincount(targets(matcher, digits)[0], minlength=len(digits))
        return float((counts * len(digits) / NOISE - 1).abs().mean())

    assert unevenness() > 0.8
    matcher.fit(64)
    assert unevenness() < 0.5


def test_targets_are_of_the_noises_class_and_correlate_with_it(digits: Table, alone: World) -> None:
    matcher = matcher_of(digits, alone, conditional=True)
    matcher.fit(64)
    rows, labels, noise = targets(matcher, digits)
    assert torch.equal(digits.labels[rows], labels)
    of_class = normalize(torch.nn.functional.one_hot(labels, 10).float().T, p=1, dim=1)
    means = of_class @ matcher.bank.rows(rows)  # of the targets, by class
    correlation = (noise * (matcher.bank.rows(rows) - means[labels])).sum(dim=1).mean()
    assert correlation > 0.1  # independent of the noise, it would be 0


def test_targets_of_noise_do_not_depend_on_its_batch(digits: Table, alone: World) -> None:
    matcher = matcher_of(digits, alone, conditional=True)
    matcher.fit(64)
    rows, labels, noise = targets(matcher, digits)
    few = torch.arange(5)
    assert torch.equal(match_with(matcher, noise[:5], few, labels[:5], few, 0, noise[:5]).rows, rows[:5])


@pytest.mark.parametrize("in_class_order", [True, False])
def test_targets_are_the_best_rows_of_the_class(digits: Table, alone: World, in_class_order: bool) -> None:
    """In blocks of one class and of all."""
    order = digits.labels.argsort(stable=True) if in_class_order else torch.arange(len(digits))
    classes = digits.labels[order]
    bank = FeatureBank(len(digits), 64, alone)
    bank.local.copy_(normalize(digits.rows(order).flatten(1), dim=1))
    matcher = Matcher(SETTINGS, bank, bank_labels=classes, num_classes=10, seed=3)
    matcher.fit(64)
    rows, labels, noise = targets(matcher, digits)
    assert len(bank.local) > bank.block_rows  # several blocks
    scores = torch.addmm(matcher.changing()["dual.fitted"].local, noise, bank.local.T)
    best = scores.masked_fill(labels[:, None] != classes, -torch.inf)
    chosen = best.gather(1, rows[:, None])[:, 0]
    assert torch.equal(classes[rows], labels)
    assert torch.allclose(chosen, best.amax(dim=1), atol=1e-6)  # products of other sizes are rounded otherwise
