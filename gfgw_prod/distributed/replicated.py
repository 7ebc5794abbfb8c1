"""The generator on every rank: DistributedDataParallel with sums of our own.

Annotations are evaluated: DDP looks at those of its hook.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gfgw_prod.distributed.cells import Spread, Turn
from gfgw_prod.distributed.checksums import checksum
from gfgw_prod.distributed.reduction import TreeSum, exchange_nodes, gradients, split_like
from gfgw_prod.distributed.world import World


class Replicated:
    """DistributedDataParallel with a communication hook per bucket.

    A rank's cells are neighbours: it adds up their nodes of the tree by itself, and all nodes cross the wire during
    the last backward pass. Where the ranks' shares are powers of two, that is as much as a plain all-reduce sends.
    """

    def __init__(self, generator: nn.Module, spread: Spread, world: World, *, exact: bool, example: tuple[Any, ...]):
        device_ids = [world.device] if world.device.type == "cuda" else None
        self.spread, self.replicated = spread, True
        self.module = generator
        self._ddp = nn.parallel.DistributedDataParallel(generator, device_ids=device_ids, broadcast_buffers=False)
        self._world = world
        self._exact = exact
        self._turn: Turn | None = None
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
    def turn(self, turn: Turn) -> Iterator[None]:
        self._turn = turn
        # Gradients add up locally and cross the wire once, in the last round. Passes go past DDP, for those of several
        # turns may wait for their backward passes: what its own would do before a backward pass is done here.
        if turn.is_last:
            self._ddp.reducer.prepare_for_forward()
            self._ddp.reducer._rebuild_buckets()
            self._ddp.reducer.prepare_for_backward([])
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
            full = self._world.all_gather(chunk).flatten()
            for parameter, gradient in zip(parameters, split_like(full, parameters), strict=True):
                parameter.grad = gradient
        self._buckets.clear()
        checksums = [*self._checksums, torch.stack(self._in_buckets).sum()]
        self._checksums, self._in_buckets = [], []
        return checksums

    def _take_bucket(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        flat = bucket.buffer()
        if self._turn is not None:
            if self._exact:
                nodes = self._nodes(bucket)
                self._in_buckets.append(checksum(nodes or [flat]))  # of what is sent: an error of adding it up shows
                total = TreeSum()
                for node, level in exchange_nodes(nodes, self.spread.shares, flat, self._world):
                    total.push(node, level)
                self._buckets.append((bucket.parameters(), total.pop()))
            else:
                self._in_buckets.append(checksum([flat]))
                with self._world.traffic.waiting():
                    dist.all_reduce(flat)
        done.set_result(flat)
        return done

    def _nodes(self, bucket: dist.GradBucket) -> list[Tensor]:
        """This rank's nodes of the tree over a bucket's gradients, each flat."""
        assert self._turn is not None
        if self.spread.turns == 1:
            return [bucket.buffer()] if self._turn.counts else []
        by_parameter = []
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            tree = self._sums[parameter]
            if self._turn.counts:
                tree.push(gradient)
            by_parameter.append(tree.take())
        return [torch.cat([part.flatten() for part in parts]) for parts in zip(*by_parameter, strict=True)]
