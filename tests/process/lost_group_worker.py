"""A rank of three: rank 1 is lost; the others leave the group with DDP or FSDP in it, and form another without rank 1.

``python lost_group_worker.py RANK PORT HOW``. Prints its descriptors and threads after each of several groups.

No ``from __future__ import annotations`` here: DDP inspects the evaluated annotations of its communication hook.
"""

import os
import signal
import sys
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gfgw_prod.distributed.lost_group import connections, leave_lost_groups
from gfgw_prod.distributed.lost_peers import lost_connection

GROUPS = 6
PATIENCE = timedelta(seconds=120)  # nothing may wait for it


class Holder:
    """Holds DDP, which holds its hook."""

    def __init__(self, module: nn.Module):
        self.module = nn.parallel.DistributedDataParallel(module)
        self.module.register_comm_hook(None, self.hook)

    def hook(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        dist.all_reduce(bucket.buffer())
        done.set_result(bucket.buffer())
        return done


class Sharded:
    """Holds a module that is built and sharded anew for every group."""

    def __init__(self, _: nn.Module):
        with torch.device("meta"):
            self.module = nn.Linear(8, 8)
        fully_shard(
            self.module, mesh=init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("a", "b"))["b"]
        )
        self.module.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.to_local().fill_(1.0)


def join(store: dist.Store, name: str, rank: int, ranks: int) -> None:
    dist.init_process_group("gloo", store=dist.PrefixStore(name, store), rank=rank, world_size=ranks, timeout=PATIENCE)
    dist.new_group(backend="gloo", timeout=PATIENCE)


def main(rank: int, port: int, how: str) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("localhost", port, is_master=False, timeout=PATIENCE)
    module = nn.Linear(8, 8)
    holder = Sharded if how == "killed, sharded" else Holder
    with connections.noted():
        join(store, "first", rank, 3)
        held = [holder(module)]
    held[0].module(torch.ones(1, 8)).sum().backward()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
    if how == "stopped":  # nobody notices: another thread ends the wait
        threading.Timer(1.0, connections.shut_down).start()
    for number in range(GROUPS):
        began = time.monotonic()
        lost = "nothing"
        try:
            held[0].module(torch.ones(1, 8)).sum().backward()
            dist.all_reduce(torch.ones(1))
        except RuntimeError as error:
            lost = lost_connection(error) or str(error)
        assert (number == 0) == ("/gloo/" in lost or "onnection" in lost), lost
        assert time.monotonic() - began < 60
        del held[0].module
        held.clear()
        leave_lost_groups()
        facts = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        print("facts", *facts, flush=True)
        if number < GROUPS - 1:
            with connections.noted():
                join(store, str(number), rank // 2, 2)
                held.append(holder(module))
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
