"""The ranks of a run: process group, device, and the collectives that the trainer uses."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from gfgw_prod.distributed.arithmetic import set_arithmetic
from gfgw_prod.distributed.devices import choose_device, require_same_device_type
from gfgw_prod.distributed.lost_group import connections, groups_not_split
from gfgw_prod.distributed.torchrun import RankEnvironment, rank_environment
from gfgw_prod.distributed.traffic import Traffic
from gfgw_prod.distributed.transfers import to_device
from gfgw_prod.process.exit_codes import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
STACKS_SECONDS = 60  # between a hang, when stacks are written, and NCCL's timeout, which ends the process


_joined = itertools.count()  # process groups of this process; the ranks of a job agree on it


@dataclass(frozen=True)
class World:
    """This process and the other ranks of its run. With one rank there is no process group; collectives do nothing."""

    rank: int
    world_size: int
    device: torch.device
    local_rank: int = 0  # among the ranks of its node
    local_world_size: int = 1
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    @classmethod
    def prepared(cls, device: Literal["auto", "cpu", "cuda"], threads: int) -> World:
        """Set torch up for deterministic arithmetic, for a rank that will ``join`` torchrun's group, if there is one.

        Raises:
            UserError: if torchrun's environment is malformed, or GPUs are too few.
        """
        launched = rank_environment() or RankEnvironment()
        gpus = 0 if device == "cpu" else torch.cuda.device_count()
        chosen = choose_device(device, launched, gpus)
        set_arithmetic(chosen, threads)
        return cls(launched.rank, launched.world_size, chosen, launched.local_rank, launched.local_world_size)

    def join(self, timeout_seconds: int, hang_seconds: float = 0.0, meeting: dist.Store | None = None) -> None:
        """Join the other ranks.

        Args:
            timeout_seconds: longest wait for other ranks in a collective.
            hang_seconds: on GPUs that wait is longer than this, so that ranks that hang can write their stacks before
                NCCL ends them.
            meeting: a store where they meet that no group has used; by default torchrun's.

        Raises:
            UserError: if only some nodes have GPUs.
        """
        if rank_environment() is None:
            return
        with _silent_output(), connections.noted():
            on_gpu = self.device.type == "cuda"
            timeout = timedelta(seconds=max(timeout_seconds, (hang_seconds + STACKS_SECONDS) if on_gpu else 0))
            if meeting is None:
                store, _, _ = next(rendezvous("env://", timeout=timeout))
                # A second group in one process must not find the addresses of the first.
                meeting = dist.PrefixStore(f"world-{next(_joined)}", store)
            meeting.set_timeout(timeout)
            require_same_device_type(meeting, self.rank, self.world_size, self.device)
            # With its device, NCCL connects at once, and says here what is wrong.
            hook = sys.excepthook
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                timeout=timeout,
                store=meeting,
                rank=self.rank,
                world_size=self.world_size,
                device_id=self.device if on_gpu else None,
            )
            if hook.__module__ == dist.distributed_c10d.__name__:  # a group before this one has set torch's already
                sys.excepthook = hook

    @classmethod
    def start(cls, device: Literal["auto", "cpu", "cuda"], threads: int, timeout_seconds: int) -> World:
        """Set torch up, and join the other ranks: ``prepared`` and ``join``."""
        world = cls.prepared(device, threads)
        world.join(timeout_seconds)
        return world

    @classmethod
    @contextmanager
    def joined(cls, device: Literal["auto", "cpu", "cuda"], threads: int, timeout_seconds: int) -> Iterator[World]:
        """Start as ``start`` does, and leave at the end as ``leaving`` does."""
        world = cls.start(device, threads, timeout_seconds)
        with world.leaving():
            yield world

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Leave the process group after the body or a ``UserError``.

        After any other error the group stays until the process ends: if this rank left it before it had written its
        error, its peers would fail, and the launcher would kill this rank.
        """
        try:
            yield
        except UserError:  # all ranks raise it
            self.stop()
            raise
        self.stop()

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the run's files and output."""
        return self.rank == 0

    @cached_property
    def mesh(self) -> DeviceMesh:
        """All ranks, for sharded tensors. Collective once: torch keeps a process group for each mesh that is made."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.device.type, (self.world_size,))

    def in_copies(self, copies: int) -> DeviceMesh:
        """Arrange all ranks as ``(copies, ranks of a copy)``, the dimensions ``replica`` and ``shard``. Collective."""
        from torch.distributed.device_mesh import init_device_mesh

        shape = copies, self.world_size // copies
        with _silent_output(), connections.noted(), groups_not_split():
            return init_device_mesh(self.device.type, shape, mesh_dim_names=("replica", "shard"))

    def stop(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def background_group(self, timeout: timedelta) -> dist.ProcessGroup | None:
        """Create a gloo group of all ranks for a background thread; ``None`` with one rank. Collective."""
        if self.world_size == 1:
            return None
        with _silent_output(), connections.noted():
            group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timeout)
        return group

    def group_for_ddp(self) -> dist.ProcessGroup | None:
        """Return a group that DDP can be constructed with; ``None`` for that of all collectives. Collective.

        TORCH_DISTRIBUTED_DEBUG=DETAIL wraps a group, and DDP of torch 2.9.1 crashes on a wrapped group of gloo.
        """
        if self.device.type == "cuda" or dist.get_debug_level() != dist.DebugLevel.DETAIL:
            return None
        dist.set_debug_level(dist.DebugLevel.INFO)  # type: ignore[call-arg]
        with _silent_output(), connections.noted():
            group: dist.ProcessGroup = dist.new_group()
        dist.set_debug_level(dist.DebugLevel.DETAIL)  # type: ignore[call-arg]
        return group

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            with self.traffic.waiting():
                dist.barrier()
            self.require_peers()

    def all_gather(self, value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """Stack equal-shaped tensors of all ranks, or of a group, by rank: ``(...)`` -> ``(ranks, ...)``."""
        if self.world_size == 1:
            return value[None]
        gathered = value.new_empty((self.world_size if group is None else group.size(), *value.shape))
        with self.traffic.waiting(value):
            # Gloo requires flat tensors.
            dist.all_gather_into_tensor(gathered.flatten(), value.contiguous().flatten(), group=group)
        return gathered

    def all_reduce_sum(self, value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """Sum over all ranks, or over a group, in place.

        Only for sums that are exact in every order: of integers, or of numbers that are zero on all ranks but one.
        """
        if self.world_size > 1:
            with self.traffic.waiting(value):
                dist.all_reduce(value, group=group)
        return value

    def all_reduce_max(self, value: Tensor) -> Tensor:
        """Elementwise maximum over ranks, in place."""
        if self.world_size > 1:
            with self.traffic.waiting(value):
                dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def send(self, tensor: Tensor, to: int) -> None:
        """Send a tensor to another rank, which calls ``receive``."""
        with self.traffic.waiting(tensor):
            dist.send(to_device(tensor, self.device), to)

    def receive(self, tensor: Tensor, source: int) -> None:
        """Overwrite a tensor with what another rank sends."""
        with self.traffic.waiting():
            received = tensor if tensor.device == self.device else torch.empty_like(tensor, device=self.device)
            dist.recv(received, source)
            if received is not tensor:
                tensor.copy_(received)

    def broadcast(self, value: T, group: dist.ProcessGroup | None = None) -> T:
        """Return rank 0's value on all ranks, over a background group if one is given."""
        if self.world_size == 1:
            return value
        box = [value]
        device = self.device if group is None else torch.device("cpu")
        with self._timed(group):
            dist.broadcast_object_list(box, src=0, group=group, device=device)
        self.require_peers()
        return box[0]

    def all_gather_object(self, value: T, group: dist.ProcessGroup | None = None) -> list[T]:
        """Return all ranks' values, by rank, over a background group if one is given."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        with self._timed(group):
            dist.all_gather_object(values, value, group=group)
        self.require_peers()
        return values

    def require_peers(self, *, wait: bool = False) -> None:
        """Raise if the process group was shut down, and what came from other ranks may be worth nothing.

        Operations over gloo raise themselves; over NCCL the host may read what an aborted one has left. So call this
        between reading what came from other ranks and doing what cannot be undone.

        Args:
            wait: for all that the device has to do; else the host must have waited.

        Raises:
            GroupLostError: if so.
        """
        if self.device.type == "cuda" and self.world_size > 1:
            if wait:
                torch.cuda.synchronize()
            connections.require_whole()

    def on_all_ranks(self, action: Callable[[], T]) -> T:
        """Call ``action`` on every rank and return its result; if it fails on any rank, raise on all. Collective.

        Without this, a rank that gives up would leave the others waiting in their next collective.

        Raises:
            UserError: the first failing rank's.
        """
        error: UserError | None = None
        try:
            result = action()
        except UserError as raised:
            error = raised
        for problem in self.all_gather_object(error and str(error)):
            if problem is not None:
                raise UserError(problem)
        return result

    def rank0_first(self, action: Callable[[], T]) -> T:
        """``on_all_ranks``, first on rank 0, then on the others, which find what rank 0 has fetched or prepared."""
        made = self.on_all_ranks(lambda: (action(),) if self.is_main else None)
        return self.on_all_ranks(lambda: action() if made is None else made[0])

    def _timed(self, group: dist.ProcessGroup | None) -> AbstractContextManager[None]:
        """Time a collective, unless it is a background thread's, which does not hold up the training thread."""
        return self.traffic.waiting() if group is None else nullcontext()


@contextmanager
def _silent_output() -> Iterator[None]:
    """Discard standard output: gloo prints its connections there, from C++, and lines of several ranks get mixed."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
