"""One of several ranks on pretended GPUs, with gloo in the place of NCCL: ``python -m tests.gpu.rank train ...``.

As over NCCL, no operation fails when a peer is lost: it and those after it are launched and give arbitrary numbers. The
host waits when it reads one, until the group is shut down, without an error. Only operations after that raise.

``DIES_AT="RANK NUMBER FILE"`` has a rank die in its maximum of that number, unless the file exists.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import device_mesh, distributed_c10d

from gfgw_prod.commands.cli import main
from gfgw_prod.distributed import world
from gfgw_prod.distributed.lost_group import connections
from gfgw_prod.distributed.lost_peers import lost_connection

from .driver import pretended_gpu
from .pretended import CUDA, PretendedGpu

GROUPS: list[str] = []  # backends of the groups that were made
OPERATIONS = (
    *("all_reduce", "all_gather_into_tensor", "all_to_all_single", "all_gather_object", "broadcast_object_list"),
    *("barrier", "send", "recv"),
)
BLOCKING = ("all_gather_object", "broadcast_object_list", "barrier")
LOST: list[str] = []  # why operations of the present groups do not end
LONGEST_SECONDS = 120.0  # for launchers to begin a generation without a lost rank


def stand_in_for_nccl(patch: pytest.MonkeyPatch, gpu: PretendedGpu) -> None:
    """Have groups of NCCL use gloo. Groups that were gloo's anyway take no tensors of the device."""
    start, new_group = dist.init_process_group, dist.new_group
    device_of_objects = distributed_c10d._get_object_coll_device

    def init_process_group(backend: str, *, device_id: torch.device, **options: Any) -> None:
        assert backend == "nccl"
        assert device_id == CUDA  # with it, NCCL connects at once, and barriers know their device
        GROUPS.append(backend)
        gpu.gloo.clear()  # names of groups of before, which are given anew
        LOST.clear()
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
    for name in OPERATIONS:
        patch.setattr(dist, name, as_over_nccl(getattr(dist, name), gpu, blocks=name in BLOCKING))
    patch.setattr(gpu, "wait", waiting(gpu.wait))
    patch.setattr(dist, "all_reduce", dying(dist.all_reduce))


def as_over_nccl(operation: Callable[..., Any], gpu: PretendedGpu, *, blocks: bool) -> Callable[..., Any]:
    """An operation that neither fails nor ends when a peer is lost; it ``blocks`` the host, or is only launched."""

    def run(*args: Any, group: Any = None, **options: Any) -> Any:
        if group is not None and group.group_name in gpu.gloo:
            return operation(*args, group=group, **options)
        if not connections.are_whole:
            raise dist.DistBackendError("NCCL communicator was aborted on this rank.")
        if not LOST:
            try:
                return operation(*args, group=group, **options)
            except RuntimeError as error:
                if lost_connection(error) is None:
                    raise
                LOST.append(str(error))
        if blocks:
            wait_for_abort()
        return None

    return run


def wait_for_abort() -> None:
    """Wait as the host does for a kernel that waits for a lost rank."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while LOST and connections.are_whole and time.monotonic() < deadline:
        time.sleep(0.01)


def waiting(wait: Callable[[str], None]) -> Callable[[str], None]:
    """The host's wait for the device, which takes until an abort if the device waits for a lost rank."""

    def run(why: str) -> None:
        wait_for_abort()
        wait(why)

    return run


def dying(all_reduce: Callable[..., Any]) -> Callable[..., Any]:
    """An all-reduce in which this rank dies, if ``DIES_AT`` says so."""
    rank, number, file = os.environ.get("DIES_AT", "-1 0 .").split()
    maxima = 0

    def run(tensor: Any, op: Any = dist.ReduceOp.SUM, **options: Any) -> Any:
        nonlocal maxima
        if op == dist.ReduceOp.MAX and not options.get("async_op"):
            maxima += 1
            if os.environ["RANK"] == rank and maxima == int(number) and not Path(file).exists():
                Path(file).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return all_reduce(tensor, op, **options)

    return run


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch, pretended_gpu(visible=2) as gpu:
        stand_in_for_nccl(patch, gpu)
        code = main(sys.argv[1:])
    if os.environ["RANK"] == "0":
        print(len(GROUPS), gpu.counts.launches.total(), gpu.counts.waits.total())
    raise SystemExit(code)
