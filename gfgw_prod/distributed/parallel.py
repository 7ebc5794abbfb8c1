"""Wraps the generator for one rank, for DDP and for FSDP2, and reduces its gradients over cells, turns and ranks.

The model knows nothing of this. A strategy offers the module to call, ``turn`` (a context around one round's backward
pass) and ``finish`` (leave the step's summed gradient in ``.grad``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from gfgw_prod.distributed.cells import Spread, Turn
from gfgw_prod.distributed.checksums import checksum
from gfgw_prod.distributed.reduction import TreeSum, gradients
from gfgw_prod.distributed.replicated import Replicated
from gfgw_prod.distributed.sharded import Sharded
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import UserError

if TYPE_CHECKING:
    from gfgw_prod.settings.running import DistributedSettings


class Parallel(Protocol):
    """A generator ready for training on this rank. Passes may be made at any time, backward passes within a turn."""

    spread: Spread  # of the step's cells over ranks
    module: nn.Module  # holds the parameters; call it
    replicated: bool  # whether every rank of several holds all parameters and gradients

    def turn(self, turn: Turn) -> AbstractContextManager[None]:
        """Around one round's backward pass: takes its gradients in."""

    def finish(self) -> list[Tensor]:
        """Leaves the sum over all counted cells in the parameters' ``.grad``.

        Returns:
            A checksum of this rank's own gradient for each turn, before it met any other.
        """


def parallelise(
    generator: nn.Module,
    world: World,
    cells: int,
    settings: DistributedSettings,
    blocks: type[nn.Module],
    example: tuple[Any, ...],
) -> Parallel:
    """Wraps the generator.

    Args:
        cells: of a step.
        blocks: FSDP shards each submodule of this type on its own.
        example: inputs of one forward pass, for DDP's rehearsal.
    """
    spread = Spread.under(settings, cells, world.world_size)
    exact = settings.reduction == "exact"
    if world.world_size == 1:
        return Alone(generator, spread, exact=exact)
    if settings.strategy == "ddp":
        return Replicated(generator, spread, world, exact=exact, example=example)
    return Sharded(generator, spread, world, settings, shards_of(settings, world.world_size), blocks)


def shards_of(settings: DistributedSettings, ranks: int) -> int:
    """Ranks that share one copy of the generator: one where it is not sharded.

    Raises:
        UserError: if groups of so many do not divide the ranks.
    """
    if settings.strategy == "ddp" or ranks == 1:
        return 1
    size = settings.shard_ranks or ranks
    if ranks % size:
        raise UserError(f"distributed.shard_ranks {size} should divide the number of ranks, {ranks}")
    return size


class Alone:
    """One rank: gradients of cells go through the same tree as anywhere else."""

    def __init__(self, generator: nn.Module, spread: Spread, *, exact: bool):
        self.spread, self.replicated = spread, False
        self.module = generator
        self._parameters = [p for p in generator.parameters() if p.requires_grad]
        self._sums = [TreeSum() for _ in self._parameters] if exact else None
        self._checksums: list[Tensor] = []

    @contextmanager
    def turn(self, turn: Turn) -> Iterator[None]:
        yield
        self._checksums.append(checksum(gradients(self._parameters)))
        if self._sums is not None:
            for parameter, tree in zip(self._parameters, self._sums, strict=True):
                assert parameter.grad is not None
                tree.push(parameter.grad, give=True)
                parameter.grad = None

    def finish(self) -> list[Tensor]:
        if self._sums is not None:
            for parameter, tree in zip(self._parameters, self._sums, strict=True):
                parameter.grad = tree.pop()
        checksums, self._checksums = self._checksums, []
        return checksums
