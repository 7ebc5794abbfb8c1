"""Interpreter, packages, CPUs, memory, network and clock of this host."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from gfgw_prod.commands.doctor.finding import Finding
from gfgw_prod.process.shared_memory import shared_memory_problem

GIB = 2**30
UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)
MOST_RANKS = 4  # that launch/elastic.sh starts without a GPU
OLDEST_TORCH = (2, 9)
TIMEX_BYTES = 512  # more than the kernel's struct takes


def python() -> Finding:
    """Check the version of Python."""
    fits = (3, 11) <= sys.version_info[:2] <= (3, 14)
    advice = "" if fits else "make clean setup PYTHON=/path/to/python3.13"
    return Finding("python", "ok" if fits else "bad", f"{platform.python_version()} (3.11 to 3.14 needed)", advice)


def torch_build() -> Finding:
    """Check the version of torch, and name the CUDA it was built for."""
    import torch

    major, minor = (int(number) for number in torch.__version__.split(".")[:2])
    fits = (major, minor) >= OLDEST_TORCH
    detail = f"{torch.__version__}, built for CUDA {torch.version.cuda} (2.9 or newer needed; the lock has 2.9.1)"
    return Finding("torch", "ok" if fits else "bad", detail, "" if fits else "make setup")


def cores() -> Finding:
    """Count the CPUs that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = f"{min(count, MOST_RANKS)} ranks of one thread" if count > 1 else "1 rank"
    return Finding("cores", "ok", f"{count}; without a GPU, launch/elastic.sh starts {ranks}")


def arithmetic() -> Finding:
    """Look for environment variables with which libraries compute other bits."""
    from gfgw_prod.resilience.same_run import arithmetic_variables

    if found := arithmetic_variables():
        detail = f"{', '.join(found)}: other weights than without"
        return Finding("arithmetic", "note", detail, "unset them, or keep them on all nodes and whenever a run resumes")
    return Finding("arithmetic", "ok", "no environment variable changes it")


def memory() -> Finding:
    """Check the free memory, within the limit of the control group if there is one."""
    free = []
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        free.append(int(text.partition("MemAvailable:")[2].split()[0]) * 1024)
    with suppress(OSError, ValueError):  # "max": no limit
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    estimates = "gfgw train --dry-run estimates what a rank needs"
    if not free:
        return Finding("memory", "note", "not reported by this system", estimates)
    detail = f"{min(free) / GIB:.1f} GiB free ({estimates})"
    if min(free) < 2 * GIB:
        return Finding("memory", "note", detail, "run fewer ranks (NPROC), or raise the limit of the container")
    return Finding("memory", "ok", detail)


def shared_memory() -> Finding:
    """Check /dev/shm, which workers need, and ranks of a node use to communicate."""
    if problem := shared_memory_problem():
        return Finding("shared memory", "note", problem, "mount a writable tmpfs there, or set data.workers 0")
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return Finding("shared memory", "ok", "this system has no /dev/shm, and needs none")
    if free < GIB // 2:
        detail = f"{free / GIB:.2f} GiB free in /dev/shm, too little for NCCL with many ranks"
        return Finding("shared memory", "note", detail, "start the container with --shm-size 2g")
    return Finding("shared memory", "ok", f"{free / GIB:.1f} GiB free in /dev/shm")


def compiler() -> Finding:
    """Look for the C++ compiler that `train.compile` needs on CPUs (Triton needs a C compiler on GPUs)."""
    named = os.environ.get("CXX")
    found = next(filter(None, map(shutil.which, [named] if named else ["g++", "clang++"])), None)
    if found is not None:
        return Finding("compiler", "ok", f"{found}, for train.compile")
    detail = f"CXX={named} does not exist" if named else "none found; only train.compile needs one"
    return Finding("compiler", "note", detail, "install g++ and Python's headers, or leave train.compile off")


def loopback() -> Finding:
    """Check that processes of this host can connect."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return Finding("loopback", "ok", f"a port can be bound ({server.getsockname()[1]} tried)")
    except OSError as error:
        detail = f"no port can be bound on 127.0.0.1 ({error.strerror}): rendezvous needs one"
        return Finding("loopback", "bad", detail, "ip link set lo up")


def own_name() -> Finding:
    """Check that other nodes can find this one by its name."""
    name = socket.gethostname()
    try:
        address = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        detail = f"{name} does not resolve ({error.strerror}); one node needs no name"
        return Finding("host name", "note", detail, f"add {name} to /etc/hosts, or set LOCAL_ADDR, for more nodes")
    return Finding("host name", "ok", f"{name} is {address}")


def port(what: str, number: int) -> Finding:
    """Check that a default port is free."""
    try:
        with socket.create_server(("127.0.0.1", number)):
            return Finding(f"{what} port", "ok", f"{number} is free")
    except OSError as error:
        other = "--telemetry.prometheus-port" if what == "metrics" else "RDZV_ENDPOINT"
        detail = f"{number} cannot be bound ({error.strerror}); another run may be using it"
        return Finding(f"{what} port", "note", detail, f"choose another with {other}")


def clock(now: float | None = None) -> Finding:
    """Check the clock, which ages of checkpoints and alerts depend on."""
    now = time.time() if now is None else now
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < Path(__file__).stat().st_mtime - 86400:
        return Finding("clock", "note", f"{shown} is before this program was installed", "set it: chronyc makestep")
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    except (OSError, AttributeError):
        state = -1
    if state == UNSYNCHRONISED:
        detail = f"{shown}, and the kernel is not synchronised with a time server"
        return Finding("clock", "note", detail, "run chrony or systemd-timesyncd, unless a VM's host does")
    return Finding("clock", "ok", shown)
