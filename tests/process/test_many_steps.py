"""Many steps end with one digest, on one to four ranks, under either strategy, in either scope."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from . import runs

SCOPES = {
    "full": ("--transport.scope", "full"),
    "subset": ("--transport.scope", "subset", "--transport.dual", "fresh", "--transport.subset-rows", "128"),
}
WORLDS = {f"{ranks} {kind}": (ranks, kind) for ranks in (2, 3, 4) for kind in ("ddp", "fsdp")}
FEW_STEPS, FEW_WORLDS = 20, {"full": ["3 fsdp"], "subset": ["2 fsdp", "3 ddp"]}
MANY_STEPS = 200


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scope", SCOPES)
def test_every_world_trains_the_weights_of_one_process(
    request: pytest.FixtureRequest, tmp_path: Path, scope: str
) -> None:
    thorough = request.config.getoption("--thorough")
    steps, worlds = (MANY_STEPS, list(WORLDS)) if thorough else (FEW_STEPS, FEW_WORLDS[scope])
    kimg = steps * runs.SMALL_BATCH / 1000
    length = ("--train.total-kimg", str(kimg), "--checkpoint.every-kimg", str(kimg / 2))
    commands = {}
    for world, (ranks, strategy) in {"alone": (1, "ddp"), **{name: WORLDS[name] for name in worlds}}.items():
        options = (*runs.SMALL, *length, *SCOPES[scope], "--distributed.strategy", strategy)
        commands[world] = partial(runs.train, tmp_path / world, *options, ranks=ranks)
    runs.execute_all(commands)
    expected, losses = runs.digests(tmp_path / "alone"), runs.losses(tmp_path / "alone")
    assert list(expected) == [steps // 2, steps]
    assert len(losses) == steps
    assert {world: runs.digests(tmp_path / world) for world in worlds} == dict.fromkeys(worlds, expected)
    assert {world: runs.losses(tmp_path / world) for world in worlds} == dict.fromkeys(worlds, losses)
