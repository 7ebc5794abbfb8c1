"""One of several ranks on pretended GPUs, with gloo in the place of NCCL: ``python -m tests.gpu.rank train ...``."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import device_mesh, distributed_c10d

from gfgw_prod.commands.cli import main
from gfgw_prod.distributed import world

from .driver import pretended_gpu
from .pretended import CUDA, PretendedGpu

GROUPS: list[str] = []  # backends of the groups that were made


def stand_in_for_nccl(patch: pytest.MonkeyPatch, gpu: PretendedGpu) -> None:
    """Have groups of NCCL use gloo. Groups that were gloo's anyway take no tensors of the device."""
    start, new_group = dist.init_process_group, dist.new_group
    device_of_objects = distributed_c10d._get_object_coll_device

    def init_process_group(backend: str, *, device_id: torch.device, **options: Any) -> None:
        assert backend == "nccl"
        assert device_id == CUDA  # with it, NCCL connects at once, and barriers know their device
        GROUPS.append(backend)
        start("gloo", **options)

    def make_group(*args: Any, backend: str | None = None, **options: Any) -> Any:
        group = new_group(*args, backend=None if backend == "nccl" else backend, **options)
        GROUPS.append(backend or "nccl")
        if backend == "gloo":
            gpu.gloo.add(group.group_name)
        return group

    def device_of(group: Any = None) -> Any:
        return device_of_objects(group) if group is not None and group.group_name in gpu.gloo else CUDA

    patch.setattr(dist, "init_process_group", init_process_group)
    patch.setattr(dist, "new_group", make_group)
    patch.setattr(device_mesh, "new_group", make_group)
    patch.setattr(device_mesh, "get_backend", lambda group=None: "nccl")
    patch.setattr(distributed_c10d, "_get_object_coll_device", device_of)
    # Each rank has a GPU of its own, and all are called cuda:0.
    patch.setattr(world, "choose_device", lambda *_: CUDA)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch, pretended_gpu(visible=2) as gpu:
        stand_in_for_nccl(patch, gpu)
        code = main(sys.argv[1:])
    if os.environ["RANK"] == "0":
        print(len(GROUPS), gpu.counts.launches.total(), gpu.counts.waits.total())
    raise SystemExit(code)
