"""Matchers of a table, as the trainer builds them, and matches with the schedules' first values."""

from __future__ import annotations

from torch import Tensor

from gfgw_prod.data.sources import Table
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.settings.transport import TransportSettings
from gfgw_prod.transport.matching import Match, Matcher


def matcher_with(
    settings: TransportSettings, bank: FeatureBank, table: Table, *, seed: int, conditional: bool
) -> Matcher:
    return Matcher(
        settings,
        bank,
        bank_labels=table.labels if conditional else None,
        num_classes=table.num_classes,
        seed=seed,
    )


def match_with(
    matcher: Matcher,
    features: Tensor,
    rows: Tensor,
    labels: Tensor,
    uniforms: Tensor,
    step: int,
    noise: Tensor | None = None,
) -> Match:
    s = matcher.settings
    return matcher.match(
        features,
        rows,
        labels,
        uniforms,
        step=step,
        epsilon=s.epsilon,
        structure_weight=s.structure_weight,
        noise=noise,
    )
