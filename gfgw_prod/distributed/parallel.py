"""Wraps the generator for one rank, for DDP and for FSDP2, and reduces its gradients over cells, rounds and ranks.

The model knows nothing of this. A strategy offers the module to call, ``turn`` (a context around one round's forward
and backward pass) and ``finish`` (leave the step's summed gradient in ``.grad``).
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gfgw_prod.distributed.cells import Round, Spread
from gfgw_prod.distributed.checksums import checksum
from gfgw_prod.distributed.reduction import TreeSum, exchange_chunks, gradients, levels, split_like
from gfgw_prod.distributed.world import World


class Parallel(Protocol):
    """A generator ready for training on this rank."""

    spread: Spread  # of the step's cells over ranks
    module: nn.Module  # holds the parameters; call it without gradient
    trained: nn.Module  # call it with gradient
    replicated: bool  # whether every rank of several holds all parameters and gradients

    def turn(self, turn: Round) -> AbstractContextManager[None]:
        """Around one round's graded forward and backward pass: takes its gradients in."""

    def finish(self) -> list[Tensor]:
        """Leaves the sum over all counted cells in the parameters' ``.grad``.

        Returns:
            A checksum of this rank's own gradient for each turn, before it met any other.
        """


def parallelise(
    generator: nn.Module,
    world: World,
    cells: int,
    strategy: Literal["ddp", "fsdp"],
    reduction: Literal["exact", "fast"],
    blocks: type[nn.Module],
    example: tuple[Any, ...],
) -> Parallel:
    """Wraps the generator.

    Args:
        cells: of a step.
        blocks: FSDP shards each submodule of this type on its own.
        example: inputs of one forward pass, for DDP's rehearsal.
    """
    spread = Spread.under(strategy, cells, world.world_size)
    if world.world_size == 1:
        return _Alone(generator, spread, exact=reduction == "exact")
    if strategy == "ddp":
        return _Replicated(generator, spread, world, exact=reduction == "exact", example=example)
    return _Sharded(generator, spread, world, exact=reduction == "exact", blocks=blocks)


class _Alone:
    """One rank: gradients of cells go through the same tree as anywhere else."""

    def __init__(self, generator: nn.Module, spread: Spread, *, exact: bool):
        self.spread, self.replicated = spread, False
        self.module = self.trained = generator
        self._parameters = [p for p in generator.parameters() if p.requires_grad]
        self._sums = [TreeSum() for _ in self._parameters] if exact else None
        self._checksums: list[Tensor] = []

    @contextmanager
    def turn(self, turn: Round) -> Iterator[None]:
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
        return _taken(self._checksums)


class _Replicated:
    """DistributedDataParallel with a communication hook per bucket.

    A rank's cells are neighbours: it adds up their nodes of the tree by itself, and all nodes cross the wire during
    the last backward pass. Where the ranks' shares are powers of two, that is as much as a plain all-reduce sends.
    """

    def __init__(self, generator: nn.Module, spread: Spread, world: World, *, exact: bool, example: tuple[Any, ...]):
        device_ids = [world.device] if world.device.type == "cuda" else None
        self.spread, self.replicated = spread, True
        self.module = generator
        self._ddp = nn.parallel.DistributedDataParallel(generator, device_ids=device_ids, broadcast_buffers=False)
        self.trained: nn.Module = self._ddp
        self._world = world
        self._exact = exact
        self._turn: Round | None = None
        self._levels = [levels(spread.held(rank)) for rank in range(world.world_size)]
        first = spread.held(world.rank).start
        self._sums: dict[Tensor, TreeSum] = {p: TreeSum(first) for p in generator.parameters() if p.requires_grad}
        self._buckets: list[tuple[list[Tensor], Tensor]] = []  # parameters, and this rank's slice of their total
        self._checksums: list[Tensor] = []  # of all turns but the last
        self._in_buckets: list[Tensor] = []  # of the last
        self._ddp.register_comm_hook(None, self._take_bucket)
        # DDP lays its buckets out anew after the first backward pass; that pass is made here, its gradients dropped.
        # DDP would also warn about the strides of gradients of 1x1 convolutions, which mean the same in either order.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        self._ddp(*example).sum().backward()
        generator.zero_grad(set_to_none=True)

    @contextmanager
    def turn(self, turn: Round) -> Iterator[None]:
        self._turn = turn
        # Gradients add up locally and cross the wire once, in the last round.
        with nullcontext() if turn.is_last else self._ddp.no_sync():
            yield
        if not turn.is_last:
            self._checksums.append(checksum(gradients(self._sums)))
        if not self._exact:
            return
        if turn.counts and not turn.is_last:
            for parameter, tree in self._sums.items():
                assert parameter.grad is not None
                tree.push(parameter.grad, give=True)
        self.module.zero_grad(set_to_none=True)  # the trees hold the sums

    def finish(self) -> list[Tensor]:
        for parameters, chunk in self._buckets:
            full = self._world.gather(chunk).flatten()
            for parameter, gradient in zip(parameters, split_like(full, parameters), strict=True):
                parameter.grad = gradient
        self._buckets.clear()
        return [*_taken(self._checksums), torch.stack(_taken(self._in_buckets)).sum()]

    def _take_bucket(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        flat = bucket.buffer()
        if self._turn is not None:
            self._in_buckets.append(checksum([flat]))
            if self._exact:
                self._buckets.append((bucket.parameters(), self._total(bucket)))
            else:
                with self._world.traffic.waiting():
                    dist.all_reduce(flat)
        done.set_result(flat)
        return done

    def _total(self, bucket: dist.GradBucket) -> Tensor:
        """This rank's slice of the sum of a bucket's gradients over all cells."""
        assert self._turn is not None
        flat = bucket.buffer()
        nodes = [flat]
        if self.spread.turns > 1:
            by_parameter = []
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
                tree = self._sums[parameter]
                if self._turn.counts:
                    tree.push(gradient)
                by_parameter.append(tree.take())
            nodes = [torch.cat([part.flatten() for part in parts]) for parts in zip(*by_parameter, strict=True)]
        # A rank with fewer nodes than the others sends zeros, which nobody adds.
        nodes += [torch.zeros_like(flat)] * (max(map(len, self._levels)) - len(nodes))
        received = [exchange_chunks(node, self._world) for node in nodes]
        total = TreeSum()
        for rank, found in enumerate(self._levels):
            for node, level in zip(received, found, strict=False):
                total.push(node[rank], level, give=True)
        return total.pop()


class _Sharded:
    """FSDP2 with our own reduce-scatter in ``exact`` mode, once a round: whole gradients are never kept."""

    def __init__(self, generator: nn.Module, spread: Spread, world: World, *, exact: bool, blocks: type[nn.Module]):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh(world.device.type, (world.world_size,))
        for module in generator.modules():
            if isinstance(module, blocks):
                fully_shard(module, mesh=mesh, reshard_after_forward=True)
        # The root too: a pass without gradient must leave every parameter sharded, as EMA and checkpoints find it.
        self._root = fully_shard(generator, mesh=mesh, reshard_after_forward=True)
        self.spread, self.replicated = spread, False
        self.module = self.trained = generator
        self._exact = exact
        self._device = world.device
        self._reducers: list[Any] = []
        self._checksums: list[Tensor] = []
        for module in generator.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)
                gather, plain = _timed_collectives(world)
                module.set_custom_all_gather(gather)
                if not exact:
                    module.set_custom_reduce_scatter(plain)
                else:
                    reducer = _tree_reduce_scatter(world)
                    module.set_custom_reduce_scatter(reducer)
                    self._reducers.append(reducer)

    @contextmanager
    def turn(self, turn: Round) -> Iterator[None]:
        for reducer in self._reducers:
            reducer.turn = turn
        if not self._exact:
            self._root.set_requires_gradient_sync(turn.is_last)
        yield
        if not self._exact:  # whole gradients are FSDP's own affair
            self._checksums.append(torch.zeros((), dtype=torch.int64, device=self._device))
            return
        self._checksums.append(torch.stack([reducer.checksum for reducer in self._reducers]).sum())
        if not turn.is_last:
            self.module.zero_grad(set_to_none=True)  # the reducers hold the sums; FSDP's own accumulation is not used

    def finish(self) -> list[Tensor]:
        return _taken(self._checksums)  # FSDP has written the last round's result, which is the total


def _taken(values: list[Tensor]) -> list[Tensor]:
    """The values; the list is empty afterwards."""
    taken = values.copy()
    values.clear()
    return taken


def _tree_reduce_scatter(world: World) -> Any:
    """A reduce-scatter for FSDP2 that adds every rank's chunk to a ``TreeSum``; the last round gives the total."""
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllocMixin

    class TreeReduceScatter(DefaultAllocMixin, ReduceScatter):
        def __init__(self) -> None:
            self.turn: Round | None = None
            self.checksum: Tensor | None = None  # of this rank's gradient of the last turn
            self._tree = TreeSum()

        def __call__(
            self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
        ) -> None:
            assert self.turn is not None
            self.checksum = checksum([input_tensor])
            for chunk in exchange_chunks(input_tensor, world)[: self.turn.live_ranks]:
                self._tree.push(chunk)
            if self.turn.is_last:
                output_tensor.copy_(self._tree.pop())
            else:
                output_tensor.zero_()

    return TreeReduceScatter()


def _timed_collectives(world: World) -> tuple[Any, Any]:
    """FSDP2's own all-gather and reduce-scatter, whose time counts as waiting."""
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

    class TimedAllGather(DefaultAllGather):
        def __call__(self, *args: Any, **kwargs: Any) -> dist.Work | None:
            with world.traffic.waiting():
                return super().__call__(*args, **kwargs)

    class TimedReduceScatter(DefaultReduceScatter):
        def __call__(self, *args: Any, **kwargs: Any) -> dist.Work:
            with world.traffic.waiting():
                return super().__call__(*args, **kwargs)

    return TimedAllGather(), TimedReduceScatter()
