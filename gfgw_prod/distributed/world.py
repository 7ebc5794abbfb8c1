"""The ranks of a run: start-up, device, and the few collectives the trainer needs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
import torch.utils.deterministic
from torch import Tensor

from gfgw_prod.distributed.torchrun import RankEnvironment, rank_environment, reports_for_node
from gfgw_prod.process.exit_codes import UserError

T = TypeVar("T")


@dataclass
class Traffic:
    """What this rank has given to the collectives of its steps so far: bytes of tensors, and time.

    Ranks meet in collectives, so the time in them is mostly that of waiting for others. It is the host's: on a GPU,
    where collectives are only enqueued, it says nothing.
    """

    bytes: int = 0
    seconds: float = 0.0

    def add(self, value: Tensor) -> None:
        """Counts one contribution."""
        self.bytes += value.numel() * value.element_size()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a collective, in the thread that trains."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


@dataclass(frozen=True)
class World:
    """This process among its peers. A run alone is a world of one, for which the collectives are no-ops.

    Attributes:
        local_rank: number among the ``local_world_size`` ranks of its node.
    """

    rank: int
    world_size: int
    device: torch.device
    local_rank: int = 0
    local_world_size: int = 1
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    @classmethod
    def start(cls, device: Literal["auto", "cpu", "cuda"], threads: int, timeout_seconds: int) -> World:
        """Joins the process group that torchrun prepared; a run alone has none.

        Raises:
            UserError: if torchrun's environment is malformed, or a GPU is asked for where there is none.
        """
        mine = rank_environment()
        torch.set_num_threads(threads)
        chosen = choose_device(device, mine or RankEnvironment())
        timeout = timedelta(seconds=timeout_seconds)
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        torch.use_deterministic_algorithms(True)
        # Costs time, for memory that nobody reads before it is written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if chosen.type == "cuda":
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when the first matrices are multiplied
            torch.cuda.set_device(chosen)
            torch.backends.cudnn.benchmark = False  # picks kernels by their time: not a function of the configuration
        if mine is not None:
            with _silent_output():
                dist.init_process_group(backend, timeout=timeout)
            return cls(mine.rank, mine.world_size, chosen, mine.local_rank, mine.local_world_size)
        return cls(0, 1, chosen)

    @classmethod
    @contextmanager
    def joined(cls, device: Literal["auto", "cpu", "cuda"], threads: int, timeout_seconds: int) -> Iterator[World]:
        """Within, this process is one of its peers; see ``start``. Bad input is what all ranks find, and leave for.

        After any other error the group stays until the process has told of it and ends: peers that miss it end, too,
        and their launcher would stop this rank before it has.
        """
        world = cls.start(device, threads, timeout_seconds)
        try:
            yield world
        except UserError:
            world.stop()
            raise
        world.stop()

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for the run."""
        return self.rank == 0

    @property
    def is_first_on_node(self) -> bool:
        """Whether this rank answers for its node."""
        return reports_for_node()

    def stop(self) -> None:
        """Leaves the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def background_group(self, timeout: timedelta) -> dist.ProcessGroup | None:
        """All ranks over gloo, for collectives of a thread of its own; ``None`` for a run alone. Collective."""
        if self.world_size == 1:
            return None
        with _silent_output():
            group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timeout)
        return group

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world_size > 1:
            with self.traffic.waiting():
                dist.barrier()

    def all_gather(self, value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """Equal-shaped tensors of all ranks, or of a group, stacked by rank: ``(...)`` -> ``(ranks, ...)``."""
        if self.world_size == 1:
            return value[None]
        self.traffic.add(value)
        gathered = value.new_empty((self.world_size if group is None else group.size(), *value.shape))
        with self.traffic.waiting():
            # Gloo wants flat tensors.
            dist.all_gather_into_tensor(gathered.flatten(), value.contiguous().flatten(), group=group)
        return gathered

    def all_reduce_sum(self, value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
        """The sum over ranks, of integers, or of numbers that are zero on all but one: the same in every order."""
        if self.world_size > 1:
            self.traffic.add(value)
            with self.traffic.waiting():
                dist.all_reduce(value, group=group)
        return value

    def all_reduce_max(self, value: Tensor) -> Tensor:
        """The elementwise maximum over ranks."""
        if self.world_size > 1:
            self.traffic.add(value)
            with self.traffic.waiting():
                dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def broadcast(self, value: T, group: dist.ProcessGroup | None = None) -> T:
        """Rank 0's value, on every rank; over a background group, if one is given."""
        if self.world_size == 1:
            return value
        box = [value]
        device = self.device if group is None else torch.device("cpu")
        with self._waiting(group):
            dist.broadcast_object_list(box, src=0, group=group, device=device)
        return box[0]

    def all_gather_object(self, value: T, group: dist.ProcessGroup | None = None) -> list[T]:
        """Every rank's value, by rank, on all ranks; over a background group, if one is given."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        with self._waiting(group):
            dist.all_gather_object(values, value, group=group)
        return values

    def agree(self, problem: str | None) -> None:
        """Raises the first rank's problem on all ranks, so that none waits for one that gave up.

        Raises:
            UserError: if any rank has a problem.
        """
        for found in self.all_gather_object(problem):
            if found is not None:
                raise UserError(found)

    def together(self, action: Callable[[], T]) -> T:
        """The action's result; a user error on any rank is raised on all, so that none waits for one that gave up.

        Raises:
            UserError: that of the first rank that has one.
        """
        try:
            result = action()
        except UserError as error:
            self.agree(str(error))
            raise
        self.agree(None)
        return result

    def main_first(self, build: Callable[[], T]) -> T:
        """The action's result, rank 0's before the others': what it had to fetch or to prepare, they find.

        Raises:
            UserError: that of the first rank that has one.
        """
        made = self.together(lambda: (build(),) if self.is_main else None)
        return self.together(lambda: build() if made is None else made[0])

    def _waiting(self, group: dist.ProcessGroup | None) -> AbstractContextManager[None]:
        """Threads of the background have groups of their own, and do not hold up a step."""
        return self.traffic.waiting() if group is None else nullcontext()


def choose_device(device: Literal["auto", "cpu", "cuda"], mine: RankEnvironment) -> torch.device:
    """The device of a rank; all ranks of a node come to the same verdict.

    Raises:
        UserError: if a GPU is asked for where there are fewer than ranks.
    """
    ranks = mine.local_world_size
    if device == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count >= ranks:
        return torch.device("cuda", mine.local_rank)
    if device == "cuda":
        raise UserError(
            f"run.device cuda: {ranks} ranks on this node have {count} GPUs; use run.device cpu or fewer ranks"
        )
    return torch.device("cpu")


@contextmanager
def _silent_output() -> Iterator[None]:
    """Gloo announces its connections on standard output, from C++, in lines that ranks garble for each other."""
    sys.stdout.flush()
    held = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(held, 1)
        os.close(held)
        os.close(nowhere)
