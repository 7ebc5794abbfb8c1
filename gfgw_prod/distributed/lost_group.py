"""Leave process groups that have lost a rank, and free all that they held. All here depends on torch's insides.

- Over gloo, only ranks connected to the lost one see their pending operations fail; the others wait for their timeout,
  and gloo has no abort. But its operations, here and at the peers, fail once the sockets of the group are shut down.
  (Listening sockets must be spared: gloo ends the process if they fail.)
- Over NCCL nobody sees that a rank is lost: kernels wait for it, and the host waits for them, without the GIL. An abort
  from another thread ends them, *without an error*: what they have written is worth nothing, and only the next
  operation of the group raises. ``require_whole`` tells. As an abort may wait for the kernels of other groups, all are
  aborted side by side. One that does not end would leave this process stuck in C, so it ends the process.
- DDP's reducer holds the communication hook, and so the object that holds DDP: a cycle through C++, which no collector
  sees.
- Dropping a group's last reference waits for gloo's threads, which may wait for the GIL. Only Python's own reference
  releases the GIL first, so it must be the last to be dropped.

What concerns NCCL was written from the source of torch 2.9.1, and has not run on a GPU.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist

from gfgw_prod.process.exit_codes import CRASHED
from gfgw_prod.process.leaving import exit_at_once
from gfgw_prod.process.standard_streams import log
from gfgw_prod.process.threads import join_awake

NCCL = "nccl"
NCCL_VARIABLES = {  # read when a group is made
    # torch's watchdog leaves failed operations alone, as it would end the process; so a group is only aborted here.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    # The same if it meets an error of CUDA: the thread that trains meets it too.
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
    # A failure leaves a mark in the store, on which a rank that is started later would end itself.
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    # After a failure the watchdog sleeps four times this, and leaving the group waits for it.
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "0",
    # Memory that switches share between ranks cannot be freed without the lost one.
    "NCCL_NVLS_ENABLE": "0",
}
ABORT_SECONDS = 30.0


class GroupLostError(RuntimeError):
    """The process group was shut down, so what its last operations gave may be worth nothing."""


class Connections:
    """What connects this process's groups: of gloo's the sockets, of NCCL's the communicators.

    A socket is known by number and inode, which tells whether the number still means the same.
    """

    def __init__(self) -> None:
        self._made: dict[int, str] = {}
        self._aborts: dict[dist.ProcessGroup, threading.Thread] = {}
        self._lock = threading.Lock()
        self._whole = True

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Context in which process groups are made; the sockets of gloo's are recorded."""
        before, groups = _sockets(), _groups()
        yield
        made = [backend for group, backend in _groups().items() if group not in groups]
        if NCCL in made:  # whose sockets belong to communicators
            return
        with self._lock:
            self._made |= {number: inode for number, inode in _sockets().items() if before.get(number) != inode}

    def shut_down(self) -> None:
        """Make every operation of the groups fail over gloo, and end over NCCL, here and at the peers.

        Safe in any thread. Communicators of NCCL may take longer.
        """
        with self._lock:
            self._whole = False
            now, made, self._made = _sockets(), self._made, {}
            for number, inode in made.items():
                if now.get(number) == inode:
                    with suppress(OSError), socket.socket(fileno=os.dup(number)) as held:
                        if not held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                            held.shutdown(socket.SHUT_RDWR)
            for group, backend in _groups().items():
                if backend == NCCL and group not in self._aborts:
                    abort = threading.Thread(target=_abort, args=(group,), name="abort", daemon=True)
                    self._aborts[group] = abort
                    abort.start()

    @property
    def are_whole(self) -> bool:
        """Whether the groups were not shut down."""
        return self._whole

    def require_whole(self) -> None:
        """Raise if the groups were shut down.

        Raises:
            GroupLostError: what their last operations gave may be worth nothing.
        """
        if not self._whole:
            raise GroupLostError("the process group was shut down, as a rank was lost or ranks came or went")

    def forget(self) -> None:
        """Wait until all groups are aborted, and forget them: they have no other holder then."""
        for abort in [*self._aborts.values()]:
            join_awake(abort)
        self._aborts.clear()

    def begin_anew(self) -> None:
        """Groups that are made from now on are whole."""
        self._whole = True


connections = Connections()


def prepare_for_aborts() -> None:
    """Set what NCCL needs so that ``Connections`` can abort its groups. Call it before any is made."""
    os.environ.update(NCCL_VARIABLES)


def leave_lost_groups() -> None:
    """Leave all groups. Nothing else may hold them any more, nor a reducer of DDP.

    Raises:
        RuntimeError: if the GPU is left with an error, as all later operations would be.
    """
    connections.shut_down()
    connections.forget()
    held = _groups()
    if NCCL in held.values():
        torch.cuda.synchronize()
    dist.destroy_process_group()
    gc.collect()
    held.clear()


@contextmanager
def groups_not_split() -> Iterator[None]:
    """Context in which a device mesh makes groups of its own, and does not split that of all ranks.

    To split a group, NCCL's of torch 2.9 look up the numbers of its ranks in a list that only the first group of a
    process has.
    """
    everyone = dist.group.WORLD
    assert everyone is not None
    device, everyone.bound_device_id = everyone.bound_device_id, None
    try:
        yield
    finally:
        everyone.bound_device_id = device


def _groups() -> dict[dist.ProcessGroup, str]:
    """This process's groups, and their backends."""
    return {group: str(backend) for group, (backend, _) in [*dist.distributed_c10d._world.pg_map.items()]}


def _abort(group: dist.ProcessGroup) -> None:
    """Abort a group; end this process if that takes too long, or fails."""
    limit = threading.Timer(ABORT_SECONDS, _give_up, (f"it took more than {ABORT_SECONDS:g} s",))
    limit.daemon = True
    limit.start()
    try:
        group.abort()
    except RuntimeError as error:
        _give_up(str(error).splitlines()[0])
    limit.cancel()


def _give_up(why: str) -> None:
    log(f"gfgw: a process group could not be aborted ({why}), so this rank ends and all restart", "warning")
    exit_at_once(CRASHED)


def _sockets() -> dict[int, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if (target := os.readlink(f"/proc/self/fd/{number}")).startswith("socket:"):
                found[int(number)] = target
    return found
