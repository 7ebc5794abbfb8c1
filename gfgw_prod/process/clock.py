"""A clock that all processes of a machine share, and the time at which this process was started."""

from __future__ import annotations

import os
import time

from gfgw_prod.process.proc_stat import stat_fields

LAUNCHED_AT = "GFGW_LAUNCHED_AT"  # the elastic launcher sets it for its ranks: when it began to start them


def now() -> float:
    """Seconds since the machine booted."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def process_started() -> float | None:
    """When this process was started, by the same clock, to a hundredth of a second; ``None`` if the system hides it."""
    try:
        return int(stat_fields()[19]) / os.sysconf("SC_CLK_TCK")  # field 22, starttime, of proc(5)
    except (OSError, IndexError, ValueError):
        return None
