"""Wraps the generator for training on one or several ranks, and sums its gradients over cells and ranks.

The generator itself is single-device code. ``Alone``, ``Replicated`` (DDP) and ``Sharded`` (FSDP2) have one interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from gfgw_prod.distributed.cells import CellAssignment, Turn
from gfgw_prod.distributed.checksums import checksum
from gfgw_prod.distributed.reduction import TreeSum, gradients, pop_flat_gradient, set_gradients
from gfgw_prod.distributed.replicated import Replicated
from gfgw_prod.distributed.sharded import Sharded
from gfgw_prod.distributed.shards import Shards
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import UserError

if TYPE_CHECKING:
    from gfgw_prod.settings.running import DistributedSettings


class Parallel(Protocol):
    """A generator ready for training. Forward passes may be made at any time, backward passes inside ``turn``."""

    assignment: CellAssignment
    module: nn.Module  # holds the parameters; call it for a forward pass
    replicated: bool  # whether each of several ranks holds all parameters and gradients
    shards: Shards | None  # if the generator is sharded; ranks with the same shard hold equal parts

    def turn(self, turn: Turn) -> AbstractContextManager[None]:
        """Collect the gradients of the backward pass made inside the body."""

    def finish_step(self) -> list[Tensor]:
        """Write the sum over all counted cells into the parameters' ``.grad``. Collective.

        Returns for each turn a checksum of this rank's own gradients, before they were added to other ranks'.
        """

    def end(self) -> None:
        """Free what holds a process group that is lost."""


def parallelise(
    generator: nn.Module,
    world: World,
    cells: int,
    settings: DistributedSettings,
    blocks: type[nn.Module],
    example: tuple[Any, ...],
) -> Parallel:
    """Wrap the generator as ``distributed.strategy`` says, for ``cells`` per step. Collective.

    FSDP shards and gathers instances of ``blocks`` one by one. DDP makes a trial backward pass of inputs ``example``.

    Raises:
        UserError: if ``distributed.shard_ranks`` does not divide the number of ranks.
    """
    assignment = CellAssignment(cells, world.world_size)
    exact = settings.reduction == "exact"
    if world.world_size == 1:
        return Alone(generator, assignment, exact=exact)
    if settings.strategy == "ddp":
        return Replicated(generator, assignment, world, exact=exact, example=example)
    return Sharded(generator, assignment, world, settings, ranks_per_copy(settings, world.world_size), blocks)


def ranks_per_copy(settings: DistributedSettings, ranks: int) -> int:
    """Ranks that share one copy of the generator; ``UserError`` if they do not divide all ranks."""
    if settings.strategy == "ddp" or ranks == 1:
        return 1
    size = settings.shard_ranks or ranks
    if ranks % size:
        raise UserError(f"distributed.shard_ranks {size} should divide the number of ranks, {ranks}")
    return size


class Alone:
    """One rank without a process group; cells' gradients are added along the same tree as on several ranks."""

    def __init__(self, generator: nn.Module, assignment: CellAssignment, *, exact: bool):
        self.assignment, self.replicated = assignment, False
        self.shards: Shards | None = None
        self.module = generator
        self._parameters = [p for p in generator.parameters() if p.requires_grad]
        self._sum = TreeSum() if exact else None
        self._checksums: list[Tensor] = []

    @contextmanager
    def turn(self, turn: Turn) -> Iterator[None]:
        yield
        if self._sum is None:
            self._checksums.append(checksum(gradients(self._parameters)))
            return
        flat = pop_flat_gradient(self._parameters)
        self._checksums.append(checksum([flat]))
        self._sum.push(flat, donate=True)

    def finish_step(self) -> list[Tensor]:
        if self._sum is not None:
            set_gradients(self._parameters, self._sum.pop_total())
        checksums, self._checksums = self._checksums, []
        return checksums

    def end(self) -> None:
        pass
