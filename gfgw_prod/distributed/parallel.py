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

from gfgw_prod.distributed.cells import Round
from gfgw_prod.distributed.reduction import TreeSum, exchange_chunks, split_like
from gfgw_prod.distributed.world import World


class Parallel(Protocol):
    """A generator ready for training on this rank."""

    module: nn.Module  # holds the parameters; call it without gradient
    trained: nn.Module  # call it with gradient

    def turn(self, turn: Round) -> AbstractContextManager[None]:
        """Around one round's graded forward and backward pass: takes its gradients in."""

    def finish(self) -> None:
        """Leaves the sum over all counted cells in the parameters' ``.grad``."""


def parallelise(
    generator: nn.Module,
    world: World,
    strategy: Literal["ddp", "fsdp"],
    reduction: Literal["exact", "fast"],
    blocks: type[nn.Module],
    example: tuple[Any, ...],
) -> Parallel:
    """Wraps the generator.

    Args:
        blocks: FSDP shards each submodule of this type on its own.
        example: inputs of one forward pass, for DDP's rehearsal.
    """
    if world.world_size == 1:
        return _Alone(generator, exact=reduction == "exact")
    if strategy == "ddp":
        return _Replicated(generator, world, exact=reduction == "exact", example=example)
    return _Sharded(generator, world, exact=reduction == "exact", blocks=blocks)


class _Alone:
    """One rank: gradients of cells go through the same tree as anywhere else."""

    def __init__(self, generator: nn.Module, *, exact: bool):
        self.module = self.trained = generator
        self._parameters = [p for p in generator.parameters() if p.requires_grad]
        self._sums = [TreeSum() for _ in self._parameters] if exact else None

    @contextmanager
    def turn(self, turn: Round) -> Iterator[None]:
        yield
        if self._sums is not None:
            for parameter, tree in zip(self._parameters, self._sums, strict=True):
                assert parameter.grad is not None
                tree.push(parameter.grad)
                parameter.grad = None

    def finish(self) -> None:
        if self._sums is not None:
            for parameter, tree in zip(self._parameters, self._sums, strict=True):
                parameter.grad = tree.pop()


class _Replicated:
    """DistributedDataParallel with a communication hook per bucket."""

    def __init__(self, generator: nn.Module, world: World, *, exact: bool, example: tuple[Any, ...]):
        device_ids = [world.device] if world.device.type == "cuda" else None
        self.module = generator
        self._ddp = nn.parallel.DistributedDataParallel(generator, device_ids=device_ids, broadcast_buffers=False)
        self.trained: nn.Module = self._ddp
        self._world = world
        self._exact = exact
        self._turn: Round | None = None
        self._sums: dict[int, TreeSum] = {}
        self._bucket_parameters: dict[int, list[Tensor]] = {}
        self._ddp.register_comm_hook(None, self._take_bucket)
        # DDP lays its buckets out anew after the first backward pass. Sums are kept by bucket over the rounds of a
        # step, so that pass is made here, and its gradients are dropped.
        # DDP would also warn about the strides of gradients of 1x1 convolutions, which mean the same in either order.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        self._ddp(*example).sum().backward()
        generator.zero_grad(set_to_none=True)

    @contextmanager
    def turn(self, turn: Round) -> Iterator[None]:
        self._turn = turn
        # Without the exact tree, gradients add up locally and cross the wire once, in the last round.
        with nullcontext() if self._exact or turn.is_last else self._ddp.no_sync():
            yield
        if self._exact:
            self.module.zero_grad(set_to_none=True)  # the trees hold the sums

    def finish(self) -> None:
        if not self._exact:
            return
        for index in sorted(self._sums):
            chunk = self._sums[index].pop()
            full = self._world.gather(chunk).flatten()
            parameters = self._bucket_parameters[index]
            for parameter, gradient in zip(parameters, split_like(full, parameters), strict=True):
                parameter.grad = gradient

    def _take_bucket(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        flat = bucket.buffer()
        if self._turn is not None:
            if self._exact:
                self._bucket_parameters[bucket.index()] = bucket.parameters()
                tree = self._sums.setdefault(bucket.index(), TreeSum())
                padded = nn.functional.pad(flat, (0, -len(flat) % self._world.world_size))
                for chunk in exchange_chunks(padded, self._world.world_size)[: self._turn.live_ranks]:
                    tree.push(chunk)
            else:
                dist.all_reduce(flat)
        done.set_result(flat)
        return done


class _Sharded:
    """FSDP2 with our own reduce-scatter in ``exact`` mode."""

    def __init__(self, generator: nn.Module, world: World, *, exact: bool, blocks: type[nn.Module]):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh(world.device.type, (world.world_size,))
        for module in generator.modules():
            if isinstance(module, blocks):
                fully_shard(module, mesh=mesh, reshard_after_forward=True)
        # The root too: a pass without gradient must leave every parameter sharded, as EMA and checkpoints find it.
        self._root = fully_shard(generator, mesh=mesh, reshard_after_forward=True)
        self.module = self.trained = generator
        self._exact = exact
        self._reducers: list[Any] = []
        for module in generator.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)
                if exact:
                    reducer = _tree_reduce_scatter(world.world_size)
                    module.set_custom_reduce_scatter(reducer)
                    self._reducers.append(reducer)

    @contextmanager
    def turn(self, turn: Round) -> Iterator[None]:
        for reducer in self._reducers:
            reducer.turn = turn
        if not self._exact:
            self._root.set_requires_gradient_sync(turn.is_last)
        yield
        if self._exact and not turn.is_last:
            self.module.zero_grad(set_to_none=True)  # the reducers hold the sums; FSDP's own accumulation is not used

    def finish(self) -> None:
        """FSDP has written the last round's result, which is the total."""


def _tree_reduce_scatter(world_size: int) -> Any:
    """A reduce-scatter for FSDP2 that adds every rank's chunk to a ``TreeSum``; the last round gives the total."""
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllocMixin

    class TreeReduceScatter(DefaultAllocMixin, ReduceScatter):
        def __init__(self) -> None:
            self.turn: Round | None = None
            self._tree = TreeSum()

        def __call__(
            self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
        ) -> None:
            assert self.turn is not None
            for chunk in exchange_chunks(input_tensor, world_size)[: self.turn.live_ranks]:
                self._tree.push(chunk)
            if self.turn.is_last:
                output_tensor.copy_(self._tree.pop())
            else:
                output_tensor.zero_()

    return TreeReduceScatter()
