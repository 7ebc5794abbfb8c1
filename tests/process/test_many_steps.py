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


@pytest.fixture(scope="module")
def steps(request: pytest.FixtureRequest) -> int:
    return 200 if request.config.getoption("--thorough") else 20


@pytest.fixture(scope="module", params=SCOPES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, steps: int) -> Path:
    """Run directories of one scope by world."""
    base = tmp_path_factory.mktemp("steps")
    kimg = steps * runs.SMALL_BATCH / 1000
    length = ("--train.total-kimg", str(kimg), "--checkpoint.every-kimg", str(kimg / 2))
    commands = {
        world: partial(
            runs.train,
            base / world,
            *(*runs.SMALL, *length, *SCOPES[request.param], "--distributed.strategy", strategy),
            ranks=ranks,
        )
        for world, (ranks, strategy) in {"alone": (1, "ddp"), **WORLDS}.items()
    }
    runs.execute_all(commands)
    return base


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world", WORLDS)
def test_every_world_trains_the_weights_of_one_process(directory: Path, steps: int, world: str) -> None:
    alone, other = directory / "alone", directory / world
    assert list(runs.digests(alone)) == [steps // 2, steps]
    assert runs.digests(other) == runs.digests(alone)
    assert runs.losses(other) == runs.losses(alone)
    assert len(runs.losses(alone)) == steps
