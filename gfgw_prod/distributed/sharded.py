"""The generator in shards over all ranks or, as HSDP, over groups of them: FSDP2 with a reduce-scatter of our own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gfgw_prod.distributed.cells import Spread, Turn
from gfgw_prod.distributed.checksums import checksum
from gfgw_prod.distributed.reduction import TreeSum, exchange_nodes
from gfgw_prod.distributed.world import World

if TYPE_CHECKING:
    from gfgw_prod.settings.running import DistributedSettings


class Sharded:
    """FSDP2 with our own reduce-scatter in ``exact`` mode.

    Gradients of several turns are added up where they are and cross the wire in the last one, as under DDP. With
    ``sync_each_turn`` they cross in every turn, and no rank ever keeps a whole one.

    With fewer ``shards`` than ranks, so many neighbours share one copy of the generator (HSDP): weights are gathered
    among them alone, and their sums of gradients then cross to the other groups.

    Args:
        shards: ranks that share one copy, neighbours; they divide all ranks.
        blocks: each submodule of this type is gathered on its own.
    """

    def __init__(
        self,
        generator: nn.Module,
        spread: Spread,
        world: World,
        settings: DistributedSettings,
        shards: int,
        blocks: type[nn.Module],
    ):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        groups = world.world_size // shards
        mesh = init_device_mesh(world.device.type, (groups, shards), mesh_dim_names=("replica", "shard"))
        replicas = mesh["replica"].get_group() if groups > 1 else None
        # FSDP knows its group of ranks alone; what crosses to the others is the reduce-scatter's affair.
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if settings.gather_dtype == "bfloat16" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # times would lose their digits; autocast sees to the rest
        )
        for module in generator.modules():
            if isinstance(module, blocks):
                fully_shard(module, mesh=mesh["shard"], reshard_after_forward=True, mp_policy=policy)
        # The root too: a pass without gradient must leave every parameter sharded, as EMA and checkpoints find it.
        self._root = fully_shard(generator, mesh=mesh["shard"], reshard_after_forward=True, mp_policy=policy)
        self.spread, self.replicated = spread, False
        self.module = generator
        self._exact, self._each_turn = settings.reduction == "exact", settings.sync_each_turn
        self._device = world.device
        self._reducers: list[Any] = []
        self._checksums: list[Tensor] = []
        for module in generator.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)
                gather, plain = _timed_collectives(world, replicas)
                module.set_custom_all_gather(gather)
                if not self._exact:
                    module.set_custom_reduce_scatter(plain)
                else:
                    reducer = _tree_reduce_scatter(world, spread, mesh["shard"].get_group(), replicas)
                    module.set_custom_reduce_scatter(reducer)
                    self._reducers.append(reducer)

    @contextmanager
    def turn(self, turn: Turn) -> Iterator[None]:
        for reducer in self._reducers:
            reducer.turn = turn
        if not self._exact:  # whole gradients are FSDP's own affair
            self._root.set_requires_gradient_sync(turn.is_last or self._each_turn)
            yield
            self._checksums.append(torch.zeros((), dtype=torch.int64, device=self._device))
            return
        if turn.is_last:
            self.module.zero_grad(set_to_none=True)  # the reducers hold the sums; what FSDP has added up are zeros
        yield
        parts = [part for reducer in self._reducers for part in reducer.checksums]
        if kept := [gradient for reducer in self._reducers for gradient in reducer.kept]:
            parts.append(checksum(kept))  # one for all: on small networks it is the number of calls that takes time
        self._checksums.append(torch.stack(parts).sum())
        for reducer in self._reducers:
            reducer.kept, reducer.checksums = [], []

    def finish(self) -> list[Tensor]:
        checksums, self._checksums = self._checksums, []
        return checksums  # FSDP has written the last round's result, which is the total


def _tree_reduce_scatter(
    world: World, spread: Spread, shards: dist.ProcessGroup, replicas: dist.ProcessGroup | None
) -> Any:
    """A reduce-scatter for FSDP2 that adds up every rank's nodes of the tree; the last turn gives the total.

    Args:
        shards: the ranks that share one copy of the generator.
        replicas: the ranks that hold the same slice as this one, if there are several copies.
    """
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllocMixin

    size, own_group = shards.size(), world.rank // shards.size()
    groups = [range(start, start + size) for start in range(0, world.world_size, size)]

    class TreeReduceScatter(DefaultAllocMixin, ReduceScatter):
        def __init__(self) -> None:
            self.turn: Turn | None = None
            # Of this turn: checksums of gradients that cross the wire, and the gradients that stay.
            self.checksums: list[Tensor] = []
            self.kept: list[Tensor] = []
            self._own = TreeSum(spread.held(world.rank).start)  # of whole gradients, where they wait for the last turn
            self._total = TreeSum()  # of this rank's slice

        def __call__(
            self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
        ) -> None:
            turn = self.turn
            assert turn is not None
            if not spread.contiguous:
                nodes = [input_tensor] if turn.counts else []
                self._add(nodes, [turn.held(rank, spread.cells) for rank in range(world.world_size)], input_tensor)
            else:
                self._keep(input_tensor, turn)
            if not turn.is_last:
                output_tensor.zero_()
                return
            total = self._total.pop()
            if replicas is not None:
                total = world.all_gather(total, replicas).flatten()[: len(output_tensor)]
            output_tensor.copy_(total)

        def _keep(self, gradient: Tensor, turn: Turn) -> None:
            """Adds a whole gradient to this rank's own nodes, which cross the wire in the last turn."""
            if gradient.is_cuda:
                # FSDP allocates it on another stream, which must not have it back before this one has done with it.
                gradient.record_stream(torch.cuda.current_stream(gradient.device))
            if turn.counts:
                self._own.push(gradient, give=True)
            if turn.is_last:
                self._add(self._own.take(), spread.shares, gradient)
            else:
                self.kept.append(gradient)

        def _add(self, nodes: Sequence[Tensor], held: Sequence[range], gradient: Tensor) -> None:
            """Adds this rank's slice of all ranks' nodes, which crosses to other groups as few nodes of theirs."""
            self.checksums.append(checksum(nodes or [gradient]))  # of what is sent: an error of adding it up is its own
            slices = exchange_nodes(nodes, [held[rank] for rank in groups[own_group]], gradient, world, shards)
            if replicas is not None:
                held = [range(held[ranks[0]].start, held[ranks[-1]].stop) for ranks in groups]
                tree = TreeSum(held[own_group].start)
                for node, level in slices:
                    tree.push(node, level)
                slices = exchange_nodes(tree.take(), held, gradient[: len(gradient) // size], world, replicas)
            for node, level in slices:
                self._total.push(node, level)

    return TreeReduceScatter()


def _timed_collectives(world: World, replicas: dist.ProcessGroup | None) -> tuple[Any, Any]:
    """FSDP2's own all-gather and reduce-scatter, whose time counts as waiting; the latter also over the groups."""
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

    class TimedAllGather(DefaultAllGather):
        def __call__(self, *args: Any, **kwargs: Any) -> dist.Work | None:
            with world.traffic.waiting():
                return super().__call__(*args, **kwargs)

    class TimedReduceScatter(DefaultReduceScatter):
        def __call__(self, output_tensor: Tensor, *args: Any, **kwargs: Any) -> dist.Work:
            with world.traffic.waiting():
                work = super().__call__(output_tensor, *args, **kwargs)
                if replicas is not None:
                    dist.all_reduce(output_tensor, group=replicas)
            return work

    return TimedAllGather(), TimedReduceScatter()
