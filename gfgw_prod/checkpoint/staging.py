"""Copies of the state that a save writes from while training changes the original."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gfgw_prod.checkpoint.reading import State
from gfgw_prod.distributed.shards import local
from gfgw_prod.distributed.world import World


class Stage:
    """Copies of the state in main memory, made into the same memory for every save.

    A tensor that all ranks have alike is copied, and so written, by one of them.

    Args:
        constant: names of what no step changes: it is written from where it lies, if that is main memory.
    """

    def __init__(self, world: World, constant: Collection[str] = ()):
        self._world, self._constant = world, constant
        self._buffers: dict[str, Tensor] = {}

    def preallocate(self, state: State) -> None:
        """Makes the memory for this rank's part, and touches it."""
        for name in self._owned(state):
            if not self._stays(name, part := local(state[name])):
                self._buffer(name, part).zero_()

    def copy(self, state: State) -> State:
        """This rank's part of the state, on the CPU, for DCP to write; valid until the next call."""
        mine = {name: self._copied(name, state[name]) for name in self._owned(state)}
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        return mine

    def _owned(self, state: State) -> list[str]:
        """Shards, and this rank's share of the rest: the largest first, each to the rank with the least so far."""
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
        if not self._stays(name, part):
            buffer = self._buffer(name, part).copy_(part, non_blocking=True)
        # DCP asks a DTensor where its shard lies, and its own CPU tensor for the bytes.
        return DTensor(buffer, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else buffer

    def _stays(self, name: str, part: Tensor) -> bool:
        return name in self._constant and part.device.type == "cpu"

    def _buffer(self, name: str, part: Tensor) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = torch.empty(part.shape, dtype=part.dtype, pin_memory=part.is_cuda)
        assert self._buffers[name].shape == part.shape, name  # copying would broadcast
        return self._buffers[name]


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a whole tensor, over all ranks."""
    return tensor.numel() * tensor.element_size()
