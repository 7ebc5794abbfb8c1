"""A configuration's step, with random frozen networks and random images."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from benchmarks.frozen import draw_frozen
from gfgw_prod.data.sources import Table, outline_of
from gfgw_prod.distributed.world import World
from gfgw_prod.resilience.bad_numbers import NumberGuard
from gfgw_prod.settings import reading
from gfgw_prod.settings.config import Config
from gfgw_prod.training.building import build
from gfgw_prod.training.checked_step import CheckedStep

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS = 50_000  # of images that are not at hand


def local_config(preset: str, changes: Mapping[str, Any], directory: Path) -> Config:
    """The preset's settings with changes, and files of random weights in ``directory`` in place of published ones."""
    settings = reading.read_yaml(CONFIGS / f"{preset}.yaml")
    local: dict[str, Any] = {"run": {"dir": str(directory / "run")}, "generator": {"pretrained": None}}
    config = reading.resolve(settings, changes)
    if config.features.timm_network is not None or config.loss.lpips:
        files = directory / "dinov2.safetensors", directory / "vgg16.pth"
        dinov2, trunk = files if all(file.exists() for file in files) else draw_frozen(directory)
        local["loss"] = {"lpips_trunk": str(trunk)}
        if config.features.timm_network is not None:
            local["features"] = {"weights": str(dinov2)}
    return reading.resolve(settings, local, changes)


def random_table(config: Config, rows: int | None = None) -> Table:
    """Random images of the shape and, unless ``rows`` is given, the number of the data set."""
    if config.data.source in ("packed", "folder"):
        side = config.data.image_size
        assert side is not None
        shape, classes, known = (3, side, side), 1000, ROWS
    else:
        shape, classes, known, _ = outline_of(config.data)
    count, draw = rows or known, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), generator=draw, dtype=torch.uint8)
    return Table(images, torch.arange(count) % classes, peak=255, num_classes=classes)


@dataclass
class Steps:
    """A run that only takes steps, with a bank of random features."""

    config: Config
    world: World
    rows: int | None = None
    audit_every: int = 0
    taken: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        config, table = self.config, random_table(self.config, self.rows)
        self.training = build(config, self.world, table, lambda line: None)
        bank = self.training.matcher.bank
        draw = torch.Generator().manual_seed(1)
        features = normalize(torch.randn(bank.total, bank.dim, generator=draw), dim=1)
        bank.fill(0, features.to(self.world.device))
        self.checked = CheckedStep(
            self.training,
            NumberGuard(config.resilience),
            self.world,
            audit_every_steps=self.audit_every,
            hosts=[""] * self.world.world_size,
            log=lambda line: None,
        )
        assignment, size = self.training.parallel.assignment, config.train.cell_size
        self._stream = self.training.feed.stream(assignment, config.seed, 0, 1_000_000, size)

    def take(self, count: int = 1) -> float:
        """Take steps; return seconds for 1,000 images."""
        synchronise(self.world.device)
        started = time.perf_counter()
        for _ in range(count):
            self.checked(self.taken, self._stream)
            self.taken += 1
        synchronise(self.world.device)
        return (time.perf_counter() - started) / (count * self.config.train.batch_size / 1000)

    def phases(self) -> dict[str, float]:
        """Seconds of each phase of the last step."""
        values = self.training.clock.take()
        return {tag.rpartition("/")[2]: value for tag, value in values.items() if tag.startswith("speed/phase/")}

    def period(self) -> int:
        """Steps until the share of steps at t = 1 repeats."""
        share = self.config.train.one_step_share
        return 1 if share in (0.0, 1.0) else math.ceil(1 / min(share, 1 - share))

    def close(self) -> None:
        """End the threads that fetch images."""
        self.training.feed.close()


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
