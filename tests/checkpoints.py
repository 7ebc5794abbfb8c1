"""Small states for tests of checkpoints, and what saves and reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gfgw_prod.checkpoint.choosing import newest_good
from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.checkpoint.saving import Saver
from gfgw_prod.checkpoint.storage import Storage
from gfgw_prod.checkpoint.storages import open_storage
from gfgw_prod.distributed.world import World
from gfgw_prod.settings.running import CheckpointSettings

ALONE = World(rank=0, world_size=1, device=torch.device("cpu"))
FACTS: dict[str, Any] = {
    "config": {"seed": 1},
    "data_fingerprint": "abc",
    "frozen_weights": [],
    "packages": {},
    "arithmetic": "cpu",
    "changes": [],
    "image_shape": [1, 8, 8],
    "num_classes": 10,
}


def state(seed: int = 0, rows: int = 16) -> dict[str, Tensor]:
    """Three random tensors; ``rows`` is the size of two of them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "generator.weight": torch.randn(rows, 8, generator=generator),
        "ema.weight": torch.randn(rows, 8, generator=generator),
        "bank.rows": torch.randn(40, 3, generator=generator),
    }


class Keeper:
    """Saves states under one root, as a run of one process does."""

    def __init__(self, root: str | Path, upload_to: str | Path = "", **settings: Any):
        if "://" not in str(root):
            Path(root).mkdir(parents=True, exist_ok=True)
        self.lines: list[str] = []
        self.storage = open_storage(root)
        storages = [self.storage, *([open_storage(upload_to)] if upload_to else [])]
        self.saver = Saver(CheckpointSettings(**settings), storages, ALONE, self.lines.append)

    def start(self, step: int, saved: dict[str, Tensor] | None = None, facts: dict[str, Any] = FACTS) -> None:
        """Start to save the state of a step."""
        self.saver.save(state(step) if saved is None else saved, step=step, images=step * 1000, facts=facts)

    def save(self, *steps: int, rows: int = 16) -> None:
        """Save the states of the steps, and wait for each."""
        for step in steps:
            self.start(step, state(step, rows))
            self.saver.join()

    def figures(self) -> dict[str, float]:
        """Last value of each metric since the last call."""
        return {tag: value for _, _, values in self.saver.take_metrics() for tag, value in values.items()}


def steps(storage: Storage) -> list[int]:
    """Steps of the checkpoints."""
    return [found.step for found in checkpoints_in(storage)]


def names(keeper: Keeper) -> list[str]:
    """Visible names in its storage."""
    return [name for name in keeper.storage.names() if not name.startswith(".")]


def choose(*storages: Storage) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint that a run would resume from, and the lines that it would log."""
    lines: list[str] = []
    return newest_good(storages, ALONE, lines.append), lines


def assert_holds(found: Checkpoint | None, step: int, saved: dict[str, Tensor] | None = None) -> None:
    """Assert that the checkpoint holds the state of the step, bit for bit."""
    assert found is not None
    assert found.step == step
    wanted = state(step) if saved is None else saved
    restored = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    found.load(restored, ALONE)
    assert all(torch.equal(restored[name], tensor) for name, tensor in wanted.items())
