"""Copy the state to main memory, so that it can be written while training goes on."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Collection

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gfgw_prod.checkpoint.reading import State
from gfgw_prod.distributed.shards import local
from gfgw_prod.distributed.transfers import lock_pages
from gfgw_prod.distributed.world import World

ALIGNMENT = 64  # bytes


class Stage:
    """Buffers in main memory for copies of the state, reused by every save. They lie in one piece of memory.

    One rank copies and writes each replicated tensor. Constant tensors that are in main memory are not copied.
    """

    def __init__(self, world: World, constant: Collection[str] = ()):
        self._world, self._constant = world, constant
        self._buffers: dict[str, Tensor] = {}

    def preallocate(self, state: State) -> bool:
        """Allocate the buffers for this rank's part, and touch their memory; lock its pages for a GPU.

        Returns:
            Whether the pages could be locked, if they had to be. Otherwise copies take longer.
        """
        parts = {name: part for name in self._owned(state) if not self._needs_no_copy(name, part := local(state[name]))}
        starts, size = {}, 0
        for name, part in parts.items():
            starts[name] = size
            size += -(-part.nbytes // ALIGNMENT) * ALIGNMENT
        # From the kernel, to which it goes back: malloc would keep it in the arena of the thread that calls this.
        memory = torch.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=torch.uint8).zero_()
        self._buffers = {name: _view(memory, starts[name], part) for name, part in parts.items()}
        if self._world.device.type != "cuda":
            return True
        if (unlock := lock_pages(memory)) is None:
            return False
        weakref.finalize(self, unlock).atexit = False  # the end of the process unlocks it anyway
        return True

    def copy(self, state: State) -> State:
        """Copy this rank's part of the state to the CPU, for DCP to write. Valid until the next call."""
        if not self._buffers:
            self.preallocate(state)
        mine = {name: self._copied(name, state[name]) for name in self._owned(state)}
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        return mine

    def _owned(self, state: State) -> list[str]:
        """Names of sharded tensors, and of this rank's share of the others: largest first to the least loaded rank."""
        loads = [0] * self._world.world_size
        owned = []
        for name in sorted(state, key=lambda name: (-tensor_bytes(state[name]), name)):
            rank = loads.index(min(loads))
            if isinstance(state[name], DTensor):
                owned.append(name)
                continue
            loads[rank] += tensor_bytes(state[name])
            if rank == self._world.rank:
                owned.append(name)
        return owned

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        buffer = part = local(tensor).detach()
        if not self._needs_no_copy(name, part):
            buffer = self._buffers[name]
            assert buffer.shape == part.shape, name  # copy_ would broadcast
            buffer.copy_(part, non_blocking=True)
        # DCP takes the shard's place from the DTensor, and the bytes from its local CPU tensor.
        return DTensor(buffer, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else buffer

    def _needs_no_copy(self, name: str, part: Tensor) -> bool:
        return name in self._constant and part.device.type == "cpu"


def _view(memory: Tensor, start: int, like: Tensor) -> Tensor:
    """A tensor of the shape and type of ``like`` in ``memory``, with a storage of its own: DCP copies parts of one."""
    if not like.numel():
        return torch.empty(like.shape, dtype=like.dtype)
    flat = torch.frombuffer(memory.numpy(), dtype=like.dtype, count=like.numel(), offset=start)
    return flat.view(like.shape)


def tensor_bytes(tensor: Tensor) -> int:
    """Size in bytes of the whole tensor, over all ranks."""
    return tensor.numel() * tensor.element_size()
