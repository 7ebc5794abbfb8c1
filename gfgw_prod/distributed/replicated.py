"""DDP: the generator on every rank, with gradients added along the tree of ``reduction.py``.

No ``from __future__ import annotations`` here: DDP inspects the evaluated annotations of its communication hook.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gfgw_prod.distributed.cells import CellAssignment, Turn
from gfgw_prod.distributed.checksums import checksum
from gfgw_prod.distributed.reduction import TreeSum, exchange_nodes, gradients, pop_flat_gradient, set_gradients
from gfgw_prod.distributed.shards import Shards
from gfgw_prod.distributed.world import World


class Replicated:
    """DistributedDataParallel with a communication hook per bucket.

    A rank adds its own cells' gradients locally. Its tree nodes cross the wire during the last backward pass, bucket by
    bucket: an ``all_to_all`` for each node, and at the end of the step an ``all_gather`` of the total's slices. If
    ``turns_per_rank`` is a power of two, each rank has one node, and sends as many bytes as a ring all-reduce.
    """

    def __init__(
        self, generator: nn.Module, assignment: CellAssignment, world: World, *, exact: bool, example: tuple[Any, ...]
    ):
        device_ids = [world.device] if world.device.type == "cuda" else None
        self.assignment, self.replicated = assignment, True
        self.shards: Shards | None = None
        self.module = generator
        self._ddp = nn.parallel.DistributedDataParallel(
            generator,
            device_ids=device_ids,
            process_group=world.group_for_ddp(),
            broadcast_buffers=False,
            init_sync=False,  # all ranks build the same weights; those of a new rank come later
        )
        self._world = world
        self._exact = exact
        self._turn: Turn | None = None
        first = assignment.cells_by_rank[world.rank].start
        self._places: dict[Tensor, slice] = {}  # where a parameter's gradient lies in a flat one
        end = 0
        for parameter in generator.parameters():
            if parameter.requires_grad:
                start, end = end, end + parameter.numel()
                self._places[parameter] = slice(start, end)
        self._sum = TreeSum(first)  # of this rank's flat gradients of all turns but the last
        self._totals: list[tuple[list[Tensor], Tensor]] = []  # per bucket: parameters, this rank's slice of their total
        self._checksums: list[Tensor] = []  # one per turn before the last
        self._bucket_checksums: list[Tensor] = []  # of the last turn
        self._ddp.register_comm_hook(None, self._reduce_bucket)
        # DDP lays its buckets out anew after the first backward pass. Make that pass here and drop its gradients.
        # DDP would also warn about the strides of gradients of 1x1 convolutions, which are the same in either order.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        with torch.compiler.set_stance("force_eager"):  # no step makes a pass of this size, to compile for
            self._ddp(*example).sum().backward()
        generator.zero_grad(set_to_none=True)

    def end(self) -> None:
        """Free DDP, whose C++ part holds this object by its hook. The module stays."""
        del self._ddp

    @contextmanager
    def turn(self, turn: Turn) -> Iterator[None]:
        self._turn = turn
        # DDP's hook runs in the last turn alone. Forward passes bypass DDP, because those of several turns may be made
        # before their backward passes; so do here what DDP's own forward pass does to prepare for a backward pass.
        if turn.is_last:
            self._ddp.reducer.prepare_for_forward()
            self._ddp.reducer._rebuild_buckets()
            self._ddp.reducer.prepare_for_backward([])
        yield
        if not self._exact:
            if not turn.is_last:
                self._checksums.append(checksum(gradients(self._places)))
        elif turn.is_last:
            self.module.zero_grad(set_to_none=True)  # ``finish_step`` sets the total
        else:
            flat = pop_flat_gradient(self._places)
            self._checksums.append(checksum([flat]))
            if turn.counts:
                self._sum.push(flat, donate=True)

    def finish_step(self) -> list[Tensor]:
        for parameters, total in self._totals:
            set_gradients(parameters, self._world.all_gather(total).flatten())
        self._totals.clear()
        self._sum.pop_nodes()
        checksums = [*self._checksums, torch.stack(self._bucket_checksums).sum()]
        self._checksums, self._bucket_checksums = [], []
        return checksums

    def _reduce_bucket(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """DDP's communication hook: add up one bucket's gradients, ``(n,)``, over ranks."""
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        flat = bucket.buffer()
        if self._turn is not None:  # else it is the trial pass of the constructor
            if self._exact:
                nodes = self._nodes(bucket)
                # Checksum what is sent, so that an error in this rank's own additions shows.
                self._bucket_checksums.append(checksum(nodes or [flat]))
                total = TreeSum()
                total.push_nodes(exchange_nodes(nodes, self.assignment.cells_by_rank, flat, self._world))
                self._totals.append((bucket.parameters(), total.pop_total()))
            else:
                self._bucket_checksums.append(checksum([flat]))
                with self._world.traffic.waiting():
                    dist.all_reduce(flat)
        done.set_result(flat)
        return done

    def _nodes(self, bucket: dist.GradBucket) -> list[Tensor]:
        """This rank's tree nodes of a bucket's gradients, each flat, ``(n,)``."""
        assert self._turn is not None
        tree = self._sum.restricted(lambda flat: torch.cat([flat[self._places[p]] for p in bucket.parameters()]))
        if self._turn.counts:
            tree.push(bucket.buffer(), donate=True)
        return tree.pop_nodes()
