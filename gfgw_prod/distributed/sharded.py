"""FSDP2: the generator in shards over all ranks or, as HSDP, over groups of ranks that each share one copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gfgw_prod.distributed.cells import CellAssignment, Turn
from gfgw_prod.distributed.checksums import checksum
from gfgw_prod.distributed.reduction import TreeSum, exchange_nodes
from gfgw_prod.distributed.shards import Shards
from gfgw_prod.distributed.world import World

if TYPE_CHECKING:
    from gfgw_prod.settings.running import DistributedSettings


class Sharded:
    """FSDP2, in ``exact`` mode with a reduce-scatter that adds along the tree of ``reduction.py``.

    As under DDP, a rank adds its own cells' gradients locally and sends them in the last turn. Until then it keeps
    whole gradients: ``(parameters,)`` for each partial sum, not a shard of them.

    With ``shards`` below the number of ranks (HSDP), weights are gathered within a copy; sums of gradients are
    scattered within a copy, and then added across copies. Instances of ``blocks`` are gathered one by one.
    """

    def __init__(
        self,
        generator: nn.Module,
        assignment: CellAssignment,
        world: World,
        settings: DistributedSettings,
        shards: int,
        blocks: type[nn.Module],
    ):
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        copies = world.world_size // shards
        mesh = world.in_copies(copies)
        replicas = mesh["replica"].get_group() if copies > 1 else None
        # FSDP only knows the ranks of this copy. The reduce-scatter below adds across copies.
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if settings.gather_dtype == "bfloat16" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # times would lose precision; autocast converts the images
        )
        for module in generator.modules():
            if isinstance(module, blocks):
                fully_shard(module, mesh=mesh["shard"], reshard_after_forward=True, mp_policy=policy)
        # Reshard the root too: EMA and checkpoints need every parameter sharded after a pass without gradient.
        self._root = fully_shard(generator, mesh=mesh["shard"], reshard_after_forward=True, mp_policy=policy)
        self.assignment, self.replicated = assignment, False
        group = mesh["shard"].get_group()
        self.shards: Shards | None = Shards(world.rank % shards, shards, group)
        self.module = generator
        self._exact = settings.reduction == "exact"
        self._device = world.device
        self._reducers: list[Any] = []
        self._checksums: list[Tensor] = []
        for module in generator.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)
                gather, reducer = _timed_collectives(world, replicas)
                module.set_custom_all_gather(gather)
                if self._exact:
                    reducer = _tree_reduce_scatter(world, assignment, group, replicas)
                    self._reducers.append(reducer)
                if shards > 1:
                    module.set_custom_reduce_scatter(reducer)
                else:  # since torch 2.10, FSDP calls no reduce-scatter within one rank
                    module.set_all_reduce_hook(partial(_reduce_in_place, reducer, group))

    def end(self) -> None:
        """Free the module, which holds the groups of its ranks. Its parameters stay."""
        del self.module, self.shards, self._root, self._reducers

    @contextmanager
    def turn(self, turn: Turn) -> Iterator[None]:
        if not self._exact:  # FSDP adds whole gradients itself, where they cannot be looked at: no checksum
            self._root.set_requires_gradient_sync(turn.is_last)
            yield
            self._checksums.append(torch.zeros((), dtype=torch.int64, device=self._device))
            return
        for reducer in self._reducers:
            reducer.turn = turn
        if turn.is_last:
            self.module.zero_grad(set_to_none=True)  # FSDP has only added up zeros; the reducers hold the sums
        yield
        parts = [part for reducer in self._reducers for part in reducer.sent_checksums]
        if kept := [gradient for reducer in self._reducers for gradient in reducer.kept]:
            parts.append(checksum(kept))  # one call for all: small networks spend more time in calls than in sums
        self._checksums.append(torch.stack(parts).sum())
        for reducer in self._reducers:
            reducer.kept, reducer.sent_checksums = [], []

    def finish_step(self) -> list[Tensor]:
        # FSDP has written the total into ``.grad`` in the last turn.
        checksums, self._checksums = self._checksums, []
        return checksums


def _tree_reduce_scatter(
    world: World, assignment: CellAssignment, shards: dist.ProcessGroup, replicas: dist.ProcessGroup | None
) -> Any:
    """Create a reduce-scatter for FSDP2 that keeps gradients until the last turn and then adds all ranks' tree nodes.

    For a module of ``n`` parameters, padded to a multiple of the shards, the last turn sends ``(n,)`` by
    ``all_to_all`` for each node of this rank. With several copies it also sends ``(n / shards,)`` for each node of a
    copy, and gathers the slices of the total once.

    Args:
        shards: ranks of this rank's copy of the generator.
        replicas: ranks that hold the same shard in every copy, if there are several copies.
    """
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllocMixin

    size, cells_by_rank = shards.size(), assignment.cells_by_rank
    own_copy = world.rank // size
    cells_within_copy = cells_by_rank[own_copy * size : (own_copy + 1) * size]
    cells_by_copy = [
        range(cells_by_rank[first].start, cells_by_rank[first + size - 1].stop)
        for first in range(0, world.world_size, size)
    ]

    class TreeReduceScatter(DefaultAllocMixin, ReduceScatter):
        def __init__(self) -> None:
            self.turn: Turn | None = None
            self.kept: list[Tensor] = []  # whole gradients of this turn that stay on this rank
            self.sent_checksums: list[Tensor] = []  # of nodes sent in this turn
            self._own = TreeSum(cells_by_rank[world.rank].start)  # of this rank's whole gradients

        def __call__(
            self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
        ) -> None:
            """Write this rank's shard of the total, ``(n/shards,)``, or zeros before the last turn; input ``(n,)``."""
            turn = self.turn
            assert turn is not None
            if input_tensor.is_cuda:
                # FSDP allocates it on another stream, which must not reuse its memory while this stream needs it.
                input_tensor.record_stream(torch.cuda.current_stream(input_tensor.device))
            if turn.counts:
                self._own.push(input_tensor, donate=True)
            if turn.is_last:
                output_tensor.copy_(self._total(input_tensor)[: len(output_tensor)])
            else:
                self.kept.append(input_tensor)
                output_tensor.zero_()

        def _total(self, like: Tensor) -> Tensor:
            """Exchange all ranks' nodes and return this rank's shard of their sum, padded."""
            nodes = self._own.pop_nodes()
            # Checksum what is sent, so that an error in this rank's own additions shows.
            self.sent_checksums.append(checksum(nodes or [like]))
            slices = exchange_nodes(nodes, cells_within_copy, like, world, shards)
            if replicas is not None:
                tree = TreeSum(cells_by_copy[own_copy].start)
                tree.push_nodes(slices)
                slices = exchange_nodes(tree.pop_nodes(), cells_by_copy, like[: len(like) // size], world, replicas)
            tree = TreeSum()
            tree.push_nodes(slices)
            total = tree.pop_total()
            return total if replicas is None else world.all_gather(total, replicas).flatten()

    return TreeReduceScatter()


def _reduce_in_place(reducer: Any, group: dist.ProcessGroup, gradient: Tensor) -> None:
    """FSDP2's hook on a copy's gradient ``(n,)``, where the copy is one rank's."""
    reducer(gradient, gradient.clone(), group, dist.ReduceOp.SUM)


def _timed_collectives(world: World, replicas: dist.ProcessGroup | None) -> tuple[Any, Any]:
    """FSDP2's own all-gather and reduce-scatter, timed as waiting; the latter also all-reduces across copies."""
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
