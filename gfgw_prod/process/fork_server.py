"""A process that has imported what a rank needs, and from which ranks are forked. Imports nothing heavy.

The fork server is ``python -m gfgw_prod ...`` with the ranks' own arguments, held at its first lines. A rank is a fork
of it that goes on from there, and looks from outside as if it had been started: parent, session, arguments and
environment. ``launcher/forks.py`` is the other side.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import tempfile
import time

from gfgw_prod.process.leaving import AGENT_PID, die_with_parent
from gfgw_prod.process.proc_stat import stat_fields
from gfgw_prod.process.signals import STOP

SOCKET = "GFGW_FORK_SERVER"  # number of the server's end of a socket to the launcher
READY = b"ready\n"
# What a rank imports until its first step. DDP imports torch._dynamo, which takes a second.
MODULES = ("torch._dynamo", "gfgw_prod.commands.train", "gfgw_prod.training.trainer", "gfgw_prod.telemetry.event_file")
TITLE = b"gfgw fork server"
ARGUMENTS, ENVIRONMENT = 48, 50  # fields of /proc/self/stat, of proc(5): where these begin in memory

_forked: list[int] = []  # the process id, in a fork


def serve_forks() -> None:
    """In a fork server, fork ranks until the launcher ends; return in each of them.

    The server has one thread and never touches a GPU: a fork has no other threads, and cannot use its parent's context.
    """
    number = os.environ.pop(SOCKET)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # the launcher decides when the server ends
    die_with_parent(int(os.environ[AGENT_PID]))
    arguments = _own_memory(ARGUMENTS)
    own = ctypes.string_at(*arguments)
    _write(arguments, TITLE)
    _import_all()
    with socket.socket(fileno=int(number)) as launcher, launcher.makefile() as requests:
        launcher.sendall(READY)
        for request in requests:
            rank = _fork()
            if rank is None:
                _write(arguments, own)
                _take_environment(json.loads(request))
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                return
            launcher.sendall(b"%d\n" % rank)
    os._exit(0)


def _import_all() -> None:
    try:
        for module in MODULES:
            importlib.import_module(module)
    except BaseException:  # a rank that is started anew says why
        os._exit(1)
    if len(os.listdir("/proc/self/task")) > 1:
        os._exit(1)
    gc.freeze()  # a collection would write to pages that the ranks share


def _fork() -> int | None:
    """Fork a rank. Returns its process id, and ``None`` in the rank.

    The process between the two ends at once, so that the kernel makes the rank a child of the launcher.
    """
    reads, writes = os.pipe()
    try:
        if (between := os.fork()) == 0:
            parent = os.getpid()
            if os.fork():
                os._exit(0)
            os.setsid()
            os.write(writes, b"%d" % os.getpid())
            os.close(reads)
            os.close(writes)
            while os.getppid() == parent:
                time.sleep(0.0005)
            return None
    except OSError:  # no memory for a process: the launcher starts the rank anew
        os._exit(1)
    os.close(writes)
    with open(reads, "rb") as pipe:
        rank = pipe.read()
    os.waitpid(between, 0)
    return int(rank) if rank else os._exit(1)


def _take_environment(variables: dict[str, str]) -> None:
    """Replace the environment."""
    _forked.append(os.getpid())
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None  # it was the server's
    show_environment()


def show_environment() -> None:
    """In a fork, write the environment where other processes read it (/proc/PID/environ), as far as there is room.

    Elsewhere C code may still read what was written there when the process was started.
    """
    if not _forked:
        return
    entries = sorted((f"{name}={value}\0" for name, value in os.environ.items()), key=len)
    _write(_own_memory(ENVIRONMENT), os.fsencode("".join(entries)))


def _own_memory(field: int) -> tuple[int, int]:
    """Address and size of the memory that holds this process's arguments or environment as it was started."""
    fields = stat_fields()
    begin, end = int(fields[field - 3]), int(fields[field - 2])
    return begin, end - begin


def _write(memory: tuple[int, int], content: bytes) -> None:
    address, size = memory
    ctypes.memmove(address, content[:size].ljust(size, b"\0"), size)
