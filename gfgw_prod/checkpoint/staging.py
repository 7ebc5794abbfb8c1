"""Copy the state to main memory, so that it can be written while training goes on."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gfgw_prod.checkpoint.reading import State
from gfgw_prod.distributed.shards import local
from gfgw_prod.distributed.world import World


class Stage:
    """Buffers in main memory for copies of the state, reused by every save.

    One rank copies and writes each replicated tensor. Constant tensors that are in main memory are not copied.
    """

    def __init__(self, world: World, constant: Collection[str] = ()):
        self._world, self._constant = world, constant
        self._buffers: dict[str, Tensor] = {}

    def preallocate(self, state: State) -> None:
        """Allocate the buffers for this rank's part, and touch their memory."""
        for name in self._owned(state):
            if not self._needs_no_copy(name, part := local(state[name])):
                self._buffer(name, part).zero_()

    def copy(self, state: State) -> State:
        """Copy this rank's part of the state to the CPU, for DCP to write. Valid until the next call."""
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
            buffer = self._buffer(name, part).copy_(part, non_blocking=True)
        # DCP takes the shard's place from the DTensor, and the bytes from its local CPU tensor.
        return DTensor(buffer, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else buffer

    def _needs_no_copy(self, name: str, part: Tensor) -> bool:
        return name in self._constant and part.device.type == "cpu"

    def _buffer(self, name: str, part: Tensor) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = torch.empty(part.shape, dtype=part.dtype, pin_memory=part.is_cuda)
        assert self._buffers[name].shape == part.shape, name  # copy_ would broadcast
        return self._buffers[name]


def tensor_bytes(tensor: Tensor) -> int:
    """Size in bytes of the whole tensor, over all ranks."""
    return tensor.numel() * tensor.element_size()
