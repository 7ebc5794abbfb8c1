"""What runs where: versions of the software, the git revision, and the model of the device."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

from gfgw_prod.process.version import VERSION

REVISION = "GFGW_REVISION"  # set in the container image: the commit it was built from
CHECKOUT = Path(__file__).parents[2]  # unless the package is installed
GIT_SECONDS = 5.0


def build_labels(device: torch.device) -> dict[str, str]:
    """Versions of the package and of its libraries, and the model of the device: labels of ``run/build``."""
    return {
        "version": VERSION,
        "revision": revision(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda or ""),
        "device": device_model(device),
    }


@cache
def revision() -> str:
    """The commit of the package, with ``-dirty`` after uncommitted changes; empty if it is not known."""
    if found := os.environ.get(REVISION):
        return found
    if not (CHECKOUT / ".git").exists():  # a repository around an installed package would be another one
        return ""
    describe = ("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    command = ["git", "--no-optional-locks", "-C", str(CHECKOUT), *describe]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=GIT_SECONDS).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def device_model(device: torch.device) -> str:
    """The model of a GPU or CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def cpu_model() -> str:
    """The model of this machine's CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
