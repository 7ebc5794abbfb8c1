"""Leave a process group of gloo that has lost a rank, and free all that it held. All here depends on torch's insides.

- Only ranks connected to the lost one see their pending operations fail; the others wait for their timeout, and gloo
  has no abort. But its operations, here and at the peers, fail once the sockets of the group are shut down. (Listening
  sockets must be spared: gloo ends the process if they fail.)
- DDP's reducer holds the communication hook, and so the object that holds DDP: a cycle through C++, which no collector
  sees.
- Dropping a group's last reference waits for gloo's threads, which may wait for the GIL. Only Python's own reference
  releases the GIL first, so it must be the last to be dropped.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist


class Connections:
    """The sockets of this process's groups: number and inode, which tells whether a number still means the same."""

    def __init__(self) -> None:
        self._made: dict[int, str] = {}
        self._lock = threading.Lock()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Context in which process groups are made; their sockets are recorded."""
        before = _sockets()
        yield
        with self._lock:
            self._made |= {number: inode for number, inode in _sockets().items() if before.get(number) != inode}

    def shut_down(self) -> None:
        """Make every operation of the groups fail, here and at the peers. Safe in any thread."""
        with self._lock:
            now, made, self._made = _sockets(), self._made, {}
            for number, inode in made.items():
                if now.get(number) == inode:
                    with suppress(OSError), socket.socket(fileno=os.dup(number)) as held:
                        if not held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                            held.shutdown(socket.SHUT_RDWR)


connections = Connections()


def leave_lost_groups() -> None:
    """Leave all groups. Nothing else may hold them any more, nor a reducer of DDP."""
    connections.shut_down()
    held = [*dist.distributed_c10d._world.pg_map]
    dist.destroy_process_group()
    gc.collect()
    held.clear()


def _sockets() -> dict[int, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if (target := os.readlink(f"/proc/self/fd/{number}")).startswith("socket:"):
                found[int(number)] = target
    return found
