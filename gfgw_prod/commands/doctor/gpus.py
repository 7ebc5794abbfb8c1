"""GPUs, their driver against the CUDA that torch was built for, and NCCL."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from gfgw_prod.commands.doctor.finding import Finding

DRIVER = (570, 26)  # that came with CUDA 12.8, on Linux
OLDEST_DRIVER = (525, 60)  # of CUDA 12, which all of its minor versions run on, but for what is compiled as it runs


def findings() -> list[Finding]:
    """Of the driver, of each GPU, and of NCCL; one note where there is no GPU."""
    import torch

    installed, driver = torch.cuda.is_available(), driver_version()
    found = [] if driver is None else [judged_driver(driver)]
    if not installed:
        return [*found, without_gpu(driver, os.environ.get("CUDA_VISIBLE_DEVICES"))]
    for index in range(torch.cuda.device_count()):
        found.append(_gpu(index))
    return [*found, _nccl()]


def driver_version() -> str | None:
    """Version of the kernel's driver, by itself or by its own tool; ``None`` without one."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="ascii", errors="replace")
    except OSError:
        try:
            command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return None
    version = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return version[0] if version else None


def judged_driver(version: str) -> Finding:
    """A driver against CUDA 12.8."""
    numbers = tuple(int(number) for number in version.split(".")[:2])
    needed = ".".join(map(str, DRIVER))
    if numbers >= DRIVER:
        return Finding("driver", "ok", f"{version} (CUDA 12.8 came with {needed})")
    if numbers >= OLDEST_DRIVER:
        detail = f"{version} runs CUDA 12.8 with less: kernels that are compiled as they run may fail"
        return Finding("driver", "note", detail, f"install {needed} or newer; else leave train.compile off")
    detail = f"{version} is too old for CUDA 12.8, which torch was built for"
    return Finding("driver", "bad", detail, f"install {needed} or newer on the host; a container takes the host's")


def without_gpu(driver: str | None, visible: str | None) -> Finding:
    """Why torch sees no GPU."""
    if driver is None:
        return Finding(
            "gpu",
            "note",
            "none: training runs on the CPU",
            "on a machine with GPUs install driver 570.26 or newer; in a container start it with --gpus all",
        )
    if visible is not None and visible.strip() in ("", "-1"):
        return Finding("gpu", "note", f"hidden by CUDA_VISIBLE_DEVICES={visible!r}", "unset it to train on GPUs")
    return Finding(
        "gpu",
        "bad",
        "there is a driver, but torch can use no GPU",
        "look at nvidia-smi; in a container start it with --gpus all; the driver must suit CUDA 12.8",
    )


def _gpu(index: int) -> Finding:
    import torch

    properties = torch.cuda.get_device_properties(index)
    named = f"{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    try:
        ones = torch.ones(256, 256, device=f"cuda:{index}")
        right = bool((ones @ ones == 256).all())
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return Finding("gpu", "bad", f"{named}, cannot compute: {reason}", "look at nvidia-smi and dmesg (Xid)")
    if not right:
        return Finding("gpu", "bad", f"{named}, computes wrongly", "take it out of the job; test it: dcgmi diag -r 3")
    if properties.major < 8:
        return Finding("gpu", "note", f"{named}, without bf16", "train with train.precision fp32 or fp16")
    return Finding("gpu", "ok", named)


def _nccl() -> Finding:
    import torch
    import torch.distributed as dist

    if not dist.is_nccl_available():
        return Finding("nccl", "bad", "missing", "install the CUDA build of torch: make setup")
    try:
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda:0"))
        dist.all_reduce(torch.ones(1, device="cuda:0"))
        torch.cuda.synchronize()
        dist.destroy_process_group()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return Finding("nccl", "bad", f"cannot sum: {reason}", "run with NCCL_DEBUG=INFO; look at /dev/shm and limits")
    version = ".".join(map(str, torch.cuda.nccl.version()))
    return Finding("nccl", "ok", f"{version} sums on GPU 0 (between nodes it may need NCCL_SOCKET_IFNAME)")
