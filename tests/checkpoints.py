"""Small states, and savers and readers of them, for tests of checkpoints."""

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
    """A state of three tensors, of the seed's own numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "generator.weight": torch.randn(rows, 8, generator=generator),
        "ema.weight": torch.randn(rows, 8, generator=generator),
        "bank.rows": torch.randn(40, 3, generator=generator),
    }


class Keeper:
    """Saves states of one root, as a run alone does."""

    def __init__(self, root: str | Path, upload_to: str | Path = "", **settings: Any):
        if "://" not in str(root):
            Path(root).mkdir(parents=True, exist_ok=True)
        self.lines: list[str] = []
        self.storage = open_storage(root)
        storages = [self.storage, *([open_storage(upload_to)] if upload_to else [])]
        self.saver = Saver(CheckpointSettings(**settings), storages, ALONE, self.lines.append)

    def start(self, step: int, saved: dict[str, Tensor] | None = None, facts: dict[str, Any] = FACTS) -> None:
        """Begins to save the step's state."""
        self.saver.save(state(step) if saved is None else saved, step=step, images=step * 1000, facts=facts)

    def save(self, *steps: int, rows: int = 16) -> None:
        """Saves the steps' states, and waits for each."""
        for step in steps:
            self.start(step, state(step, rows))
            self.saver.join()

    def figures(self) -> dict[str, float]:
        """The last value of each metric since the last call."""
        return {tag: value for _, _, values in self.saver.take_metrics() for tag, value in values.items()}


def steps(storage: Storage) -> list[int]:
    """Steps of all that counts as a checkpoint."""
    return [found.step for found in checkpoints_in(storage)]


def names(keeper: Keeper) -> list[str]:
    """What stands in its storage, but hidden things."""
    return [name for name in keeper.storage.names() if not name.startswith(".")]


def choose(*storages: Storage) -> tuple[Checkpoint | None, list[str]]:
    """What a run would resume from, and what it would say."""
    lines: list[str] = []
    return newest_good(storages, ALONE, lines.append), lines


def assert_holds(found: Checkpoint | None, step: int, saved: dict[str, Tensor] | None = None) -> None:
    """The checkpoint is of the step, bit by bit."""
    assert found is not None
    assert found.step == step
    wanted = state(step) if saved is None else saved
    restored = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    found.load(restored, ALONE)
    assert all(torch.equal(restored[name], tensor) for name, tensor in wanted.items())
