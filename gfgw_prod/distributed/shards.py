"""Sharded tensors seen from one rank."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from gfgw_prod.distributed.world import World


def local(tensor: Tensor) -> Tensor:
    """A sharded tensor's part on this rank, or a replicated tensor itself; shares memory, detached."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    return tensor.detach()


def sharded_rows(rows: Tensor, total: int, world: World) -> Tensor:
    """Rows held by ranks in order, as one tensor of ``total`` rows that checkpoints by global row id."""
    if world.world_size == 1:
        return rows
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(world.device.type, (dist.get_world_size(),))
    shape = torch.Size((total, *rows.shape[1:]))
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=rows.stride())
