"""The device of each rank: the same type on all of them."""

from __future__ import annotations

import socket
from typing import Literal

import torch
import torch.distributed as dist

from gfgw_prod.distributed.torchrun import RankEnvironment
from gfgw_prod.process.exit_codes import UserError


def choose_device(device: Literal["auto", "cpu", "cuda"], launched: RankEnvironment, gpus: int) -> torch.device:
    """Choose this rank's device, of ``gpus`` that it sees; all ranks of a node choose the same type.

    Raises:
        UserError: on a node with fewer GPUs than ranks, except for ``cpu``, and for ``auto`` if it has none.
    """
    ranks = launched.local_world_size
    if device == "cpu":
        return torch.device("cpu")
    if gpus >= ranks:
        return torch.device("cuda", launched.local_rank)
    if device == "cuda" or gpus > 0:
        raise UserError(
            f"run.device {device}: {ranks} ranks on this node see {gpus} GPUs; run as many ranks as GPUs (NPROC), make "
            "more visible (CUDA_VISIBLE_DEVICES), or set run.device cpu"
        )
    return torch.device("cpu")


def require_same_device_type(store: dist.Store, rank: int, world_size: int, chosen: torch.device) -> None:
    """Check that all ranks use GPUs, or all the CPU. Collective.

    Without this, ranks would create process groups of different backends, and wait for each other until their timeout.

    Raises:
        UserError: on all ranks, naming the first that differs from rank 0.
    """
    store.set(f"device/{rank}", f"{chosen.type} on host {socket.gethostname()}")
    keys = [f"device/{each}" for each in range(world_size)]
    first, *others = (value.decode() for value in store.multi_get(keys))  # type: ignore[attr-defined]
    for other_rank, other in enumerate(others, start=1):
        if other.split()[0] != first.split()[0]:
            chose = f"rank 0 chose {first}, and rank {other_rank} {other}"
            raise UserError(f"run.device: {chose}; make GPUs visible on all nodes, or set run.device cpu")
