"""Shared by all unit tests: no network, one thread, reproducible examples, a small table of images."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # set before the hub client is imported: a test never fetches weights

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.world import World

from ..checkpoints import Keeper

settings.register_profile(
    "unit", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unit")
torch.set_num_threads(1)


@contextmanager
def at_most(what: int, limit: int) -> Iterator[None]:
    """Limit a resource of this process within the context."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


@pytest.fixture
def alone() -> World:
    """A world of one rank, which needs no process group."""
    return World(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture
def table() -> Table:
    """Sixty random grey 4x4 images of three classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 17, (60, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Table(images, torch.arange(60) % 3, peak=16, num_classes=3)


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    """A run with checkpoints of steps 1 and 2."""
    keeper = Keeper(tmp_path / "checkpoints", keep=5)
    keeper.save(1, 2)
    return keeper
