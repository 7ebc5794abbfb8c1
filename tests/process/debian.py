"""Programs of other projects that tests run against: on Debian, root installs what is not there."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


def missing(what: str, commands: Sequence[str], packages: Sequence[str], *, needs_root: bool = False) -> str:
    """Why there can be none of it here, or nothing."""
    if needs_root and os.geteuid():
        return f"{what} needs root"
    if _are_there(commands):
        return ""
    if os.geteuid() or not shutil.which("apt-get"):
        return f"{what} is not installed (Debian: apt-get install {' '.join(packages)})"
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=120"]
    install = [*apt, "install", "-y", "--no-install-recommends", *packages]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with (Path(tempfile.gettempdir()) / "gfgw-tests-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other worker collects the same tests, and finds them installed
        for command in (install, [*apt, "update"], install):
            if not _are_there(commands):
                subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False, capture_output=True)
    return "" if _are_there(commands) else f"{what} could not be installed"


def _are_there(commands: Sequence[str]) -> bool:
    return all(map(shutil.which, commands))
