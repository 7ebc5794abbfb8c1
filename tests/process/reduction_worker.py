"""Reduce small gradients on forked ranks in every way, and print what each rank found as JSON.

``reduction_worker.py RANKS CELLS...`` compares with one process; ``reduction_worker.py fault`` flips a bit on rank 0.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.device_mesh
import torch.distributed.fsdp  # before ranks are forked, so that it is imported once
from torch import Tensor, nn

from gfgw_prod.distributed.checksums import checksum
from gfgw_prod.distributed.parallel import Parallel, parallelise
from gfgw_prod.distributed.shards import local
from gfgw_prod.distributed.world import World
from gfgw_prod.settings.running import DistributedSettings
from gfgw_prod.training.checked_step import STAGES, StepChecksums

CPU = torch.device("cpu")


class Block(nn.Module):
    """Module that FSDP shards on its own; its 5 rows never divide evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


def wrapped(settings: dict[str, Any], cells: int, world: World) -> Parallel:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), Block(), Block(), nn.Linear(5, 1))
    return parallelise(network, world, cells, DistributedSettings(**settings), Block, (torch.zeros(1, 3),))


def compute(parallel: Parallel, rank: int, spoil: Callable[[int], None] = lambda turn: None) -> Tensor:
    """Compute one step's gradients; return a checksum per turn."""
    parallel.module.zero_grad(set_to_none=True)
    for number, turn in enumerate(parallel.assignment.turns_of(0, 0, size=4, rank=rank)):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(turn.cell.index))
        with parallel.turn(turn):
            (parallel.module(x).sum() * turn.weight * (1 + 0.37 * turn.cell.index)).backward()
        spoil(number)
    return torch.stack(parallel.finish_step())


def whole_gradients(parallel: Parallel) -> list[Tensor]:
    found: list[Any] = [parameter.grad for parameter in parallel.module.parameters()]
    return [each.full_tensor() if hasattr(each, "full_tensor") else each for each in found]


def ways(ranks: int) -> Iterator[dict[str, Any]]:
    """Settings of every strategy and size of a copy for this number of ranks."""
    yield {"strategy": "ddp"}
    for shards in (each for each in range(1, ranks + 1) if ranks % each == 0):
        yield {"strategy": "fsdp", "shard_ranks": shards}


def compare(world: World, cells: list[int]) -> dict[str, bool]:
    """For each of ``ways``: do two computations in a row have one process's gradients, and equal checksums?"""
    found = {}
    for count in cells:
        alone = wrapped({}, count, World(0, 1, CPU))
        compute(alone, 0)
        expected = whole_gradients(alone)
        for way in ways(world.world_size):
            parallel = wrapped(way, count, world)
            checksums, equal = [], True
            for _ in range(2):
                checksums.append(compute(parallel, world.rank))
                equal &= all(map(torch.equal, whole_gradients(parallel), expected))
            found[f"{count} {way}"] = equal and torch.equal(*checksums)
    return found


def blame(world: World, cells: list[int]) -> dict[str, Any]:
    """Flip a bit of rank 0's kept gradient after the first turn, in rank 1's slice, and say which rank is named."""
    parallel: Any = wrapped({"strategy": "fsdp"}, *cells, world)

    def flip(turn: int) -> None:
        if turn == 0 and world.rank == 0:
            kept = parallel._reducers[-1]._own._nodes[0].sum
            kept.view(torch.int32)[len(kept) // 2] ^= 1 << 20

    prints = []
    for spoil in (lambda turn: None, flip):
        own = compute(parallel, world.rank, spoil)
        total = checksum([local(parameter.grad) for parameter in parallel.module.parameters()]).expand(len(own))
        nothing = torch.zeros_like(own)
        mine = [nothing] * len(STAGES)
        mine[STAGES.index("gradient")], mine[STAGES.index("sum of gradients")] = own, total
        prints.append(StepChecksums(world.all_gather(torch.stack(mine))))
    return {"named": prints[0].first_difference(prints[1])}


def rank_main(work: Callable[[World, list[int]], dict[str, Any]], rank: int, ranks: int, cells: list[int]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    place = Path(tempfile.gettempdir())
    store = dist.FileStore(str(place / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    (place / f"{rank}.json").write_text(json.dumps(work(World(rank, ranks, CPU), cells)))
    dist.destroy_process_group()


def main() -> None:
    fault = sys.argv[1] == "fault"
    work, ranks, cells = (blame, 2, [4]) if fault else (compare, int(sys.argv[1]), [int(each) for each in sys.argv[2:]])
    with tempfile.TemporaryDirectory() as place:
        tempfile.tempdir = place
        fork = multiprocessing.get_context("fork")
        processes = [fork.Process(target=rank_main, args=(work, rank, ranks, cells)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * ranks
        found = [json.loads((Path(place) / f"{rank}.json").read_text()) for rank in range(ranks)]
    Path("found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
