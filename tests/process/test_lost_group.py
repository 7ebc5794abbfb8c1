"""What recovery in place needs of torch: a broken group of gloo can be left at once and wholly, with what is in it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters

from gfgw_prod.distributed.world import World
from gfgw_prod.generator.unet import SongUNet, UNetBlock
from gfgw_prod.settings import reading
from gfgw_prod.training.building import encode_bank
from gfgw_prod.training.kept import Kept

from . import runs

WORKER = Path(__file__).with_name("lost_group_worker.py")


@pytest.mark.skipif(sys.platform != "linux", reason="counting descriptors needs /proc")
@pytest.mark.parametrize("how", ["killed", "stopped", "killed, sharded"])
def test_group_that_lost_a_rank_is_left_at_once_with_all_its_sockets_and_threads(how: str) -> None:
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    ranks = [
        runs.start([sys.executable, str(WORKER), str(rank), str(store.port), how], {"PYTHONPATH": str(runs.ROOT)})
        for rank in range(3)
    ]
    try:
        for rank in (0, 2):
            outcome = runs.outcome_of(ranks[rank], limit_seconds=150)
            assert outcome.code == 0, outcome.stderr
            _, second, *_, last = [line for line in outcome.stdout.splitlines() if line.startswith("facts")]
            assert last == second  # descriptors and threads
    finally:
        os.kill(ranks[1].pid, signal.SIGKILL)
        ranks[1].wait()


def test_network_that_is_built_again_is_not_compiled_again() -> None:
    """As a sharded generator is, on the meta device, when a rank is lost."""
    inputs = torch.zeros(2, 1, 8, 8), torch.ones(2), None
    graphs = []
    for _ in range(2):
        with torch.device("meta"):
            network = SongUNet(8, 1, label_dim=0, model_channels=8, channel_mult=[1], num_blocks=1)
        for block in network.modules():
            if isinstance(block, UNetBlock):
                block.compile(backend="eager", dynamic=False)
        network.to_empty(device="cpu")(*inputs).sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[1] == graphs[0]


@pytest.fixture
def built(tmp_path: Path) -> Kept:
    changes = ["--run.dir", str(tmp_path / "run"), *runs.TINY[2:]]
    settings = dict(zip(changes[::2], changes[1::2], strict=True))
    config = reading.resolve(
        reading.read_yaml(runs.DIGITS),
        {},
        _nested({name[2:].replace("-", "_"): _parsed(value) for name, value in settings.items()}),
    )
    world = World.prepared("cpu", 1)
    return Kept.built_alone(config, world, print, with_bank=True)


def _parsed(value: str) -> Any:
    return json.loads(value) if value.startswith("[") else value


def _nested(flat: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        section, setting = name.split(".")
        found.setdefault(section, {})[setting] = value
    return found


def test_apply_of_a_step_meets_no_other_rank(built: Kept) -> None:
    """A rank that is lost while others apply a step must not leave them with half of it."""
    training = built.training
    encode_bank(training)
    config, size = training.config, training.config.train.cell_size
    stream = training.feed.stream(training.parallel.assignment, config.seed, 0, 1, size)
    result = training.compute(0, [next(stream) for _ in range(training.parallel.assignment.turns_per_rank)])
    before = [parameter.detach().clone() for parameter in training.parallel.module.parameters()]
    object.__setattr__(training.world, "world_size", 2)  # any collective fails now: there is no process group
    with pytest.raises(ValueError, match="process group"):
        training.world.barrier()
    training.apply(result)
    after = training.parallel.module.parameters()
    assert not all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
