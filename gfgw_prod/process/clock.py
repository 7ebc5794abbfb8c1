"""The clock that all processes of a machine share, and on which the kernel tells when each of them began."""

from __future__ import annotations

import os
import time
from pathlib import Path

LAUNCHED_AT = "GFGW_LAUNCHED_AT"  # the elastic launcher tells its ranks when it began to bring them up


def now() -> float:
    """Seconds since the machine was started."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def began() -> float | None:
    """When this process was started, to a hundredth of a second; ``None`` where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22, starttime, of proc(5)
    except (OSError, IndexError, ValueError):
        return None
