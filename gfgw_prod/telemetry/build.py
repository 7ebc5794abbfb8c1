"""Versions of the software: labels of the metric ``run/build``."""

from __future__ import annotations

import os
import platform

import torch

from gfgw_prod.process.version import VERSION

REVISION = "GFGW_REVISION"  # set in the container image: the commit it was built from


def build_labels(device: torch.device) -> dict[str, str]:
    """Versions of the package and of its libraries, and the model of the device."""
    on_gpu = device.type == "cuda"
    return {
        "version": VERSION,
        "revision": os.environ.get(REVISION, ""),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda or ""),
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
    }
