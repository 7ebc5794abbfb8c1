"""Couple a batch with a bank sharded over the ranks of a job; rank 0 saves the results."""

from __future__ import annotations

import sys

import torch
from torch.nn.functional import normalize

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.features.extractors import PixelFeatures
from gfgw_prod.settings.transport import TransportSettings
from gfgw_prod.transport.plan import Plan

from ..matching import match_with, matcher_with

ROWS, SLOTS, CLASSES, STEPS = int(sys.argv[2]), 48, 3, 3

UNSTRUCTURED = {"structure_weight": 0.0, "structure_weight_end": 0.0}


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 17, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def main() -> None:
    world = World.start("cpu", threads=1, timeout_seconds=60)
    table = Table(images(ROWS, 0), torch.arange(ROWS) % CLASSES, peak=16, num_classes=CLASSES)
    extractor = PixelFeatures(table.image_shape)
    bank = FeatureBank(ROWS, 64, world)
    bank.encode(table, extractor, 128, on_block=lambda rows: None)
    found = {}
    for dual in ("fresh", "persistent"):
        for target in ("argmax", "sample"):
            settings = TransportSettings(
                scope="full", dual=dual, target=target, epsilon=0.004, epsilon_end=0.004, structure_weight=0.3
            )
            matcher = matcher_with(settings, bank, table, seed=1, conditional=True)
            for step in range(STEPS):
                x = extractor(images(SLOTS, 10 + step).float() / 8 - 1)
                uniforms = torch.rand(SLOTS, generator=torch.Generator().manual_seed(step))
                before = world.traffic.bytes
                slots = torch.arange(SLOTS)
                match = match_with(matcher, normalize(x), slots, slots % CLASSES, uniforms, step)
                matcher.accept(match, images=(step + 1) * SLOTS)
                sent = world.traffic.bytes - before
                assert isinstance(match.coupling, Plan)
                pieces = [torch.zeros(0)] * world.world_size
                torch.distributed.all_gather_object(pieces, match.coupling.potentials.g)
                found[f"{dual} {target} {step}"] = {
                    "rows": match.rows,
                    "features": match.features,
                    "images": table.rows(match.rows),
                    "f": match.coupling.potentials.f,
                    "g": torch.cat(pieces),
                    "state": match.coupling.state,
                    "values": match.values(),
                    "status": match.coupling.status,
                    "sent": sent,
                }
    settings = TransportSettings(scope="full", dual="fitted", epsilon=0.01, epsilon_end=0.01, **UNSTRUCTURED)
    matcher = matcher_with(settings, bank, table, seed=1, conditional=True)
    matcher.fit(64)
    noise, uniforms = normalize(extractor(images(SLOTS, 9).float() / 8 - 1)), torch.zeros(SLOTS)
    match = match_with(matcher, noise, slots, slots % CLASSES, uniforms, 0, noise)
    assert matcher.dual is not None
    potential = matcher.dual.potential.rows(torch.arange(ROWS))
    if world.is_main:
        fitted = {"rows": match.rows, "features": match.features, "potential": potential}
        torch.save({"couplings": found, "fitted": fitted}, sys.argv[1])
    world.stop()


main()
