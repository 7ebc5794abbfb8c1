"""GPUs, their driver, and NCCL."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from gfgw_prod.commands.doctor.finding import Finding

DRIVER = (570, 26)  # released with CUDA 12.8 for Linux
OLDEST_DRIVER = (525, 60)  # runs every CUDA 12.x, except kernels compiled at run time


def findings() -> list[Finding]:
    """Check the driver, each GPU and NCCL; without a GPU, one finding says why."""
    import torch

    installed, driver = torch.cuda.is_available(), driver_version()
    found = [] if driver is None else [check_driver(driver)]
    if not installed:
        return [*found, without_gpu(driver, os.environ.get("CUDA_VISIBLE_DEVICES"))]
    return [*found, *map(_gpu, range(torch.cuda.device_count())), _nccl()]


def driver_version() -> str | None:
    """Version of the NVIDIA driver, from /proc or nvidia-smi; ``None`` without one."""
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


def check_driver(version: str) -> Finding:
    """Check a driver version against CUDA 12.8."""
    numbers = tuple(int(number) for number in version.split(".")[:2])
    needed = ".".join(map(str, DRIVER))
    if numbers >= DRIVER:
        return Finding("driver", "ok", f"{version} (CUDA 12.8 came with {needed})")
    if numbers >= OLDEST_DRIVER:
        detail = f"{version} runs CUDA 12.8 with limits: kernels compiled at run time may fail"
        return Finding("driver", "note", detail, f"install {needed} or newer; else leave train.compile off")
    detail = f"{version} is too old for CUDA 12.8, which torch was built for"
    return Finding("driver", "bad", detail, f"install {needed} or newer on the host; a container takes the host's")


def without_gpu(driver: str | None, visible: str | None) -> Finding:
    """Explain why torch sees no GPU."""
    if driver is None:
        advice = "on a machine with GPUs, install driver 570.26 or newer; start a container with --gpus all"
        return Finding("gpu", "note", "none: training runs on the CPU", advice)
    if visible is not None and visible.strip() in ("", "-1"):
        return Finding("gpu", "note", f"hidden by CUDA_VISIBLE_DEVICES={visible!r}", "unset it to train on GPUs")
    advice = "run nvidia-smi; start a container with --gpus all; the driver must support CUDA 12.8"
    return Finding("gpu", "bad", "there is a driver, but torch can use no GPU", advice)


def _gpu(index: int) -> Finding:
    import torch

    properties = torch.cuda.get_device_properties(index)
    name = f"{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    try:
        ones = torch.ones(256, 256, device=f"cuda:{index}")
        right = bool((ones @ ones == 256).all())
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return Finding("gpu", "bad", f"{name}, cannot compute: {reason}", "check nvidia-smi and dmesg (Xid)")
    if not right:
        advice = "exclude it from the job, test: dcgmi diag -r 3"
        return Finding("gpu", "bad", f"{name}, computes wrong results", advice)
    if properties.major < 8:
        return Finding("gpu", "note", f"{name}, without bf16", "train with train.precision fp32 or fp16")
    return Finding("gpu", "ok", name)


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
        return Finding("nccl", "bad", f"cannot sum: {reason}", "run with NCCL_DEBUG=INFO; check /dev/shm and limits")
    version = ".".join(map(str, torch.cuda.nccl.version()))
    return Finding("nccl", "ok", f"{version} sums on GPU 0 (more nodes may need NCCL_SOCKET_IFNAME)")
