"""Programs of other projects that tests run against. On Debian, root installs those that are missing."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest


def require(what: str, commands: Sequence[str], packages: Sequence[str], *, needs_root: bool = False) -> None:
    """Skip the test if the commands are missing and cannot be installed. For fixtures: collecting installs nothing."""
    if needs_root and os.geteuid():
        pytest.skip(f"{what} needs root")
    if _are_there(commands):
        return
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip(f"{what} is not installed (Debian: apt-get install {' '.join(packages)})")
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=120"]
    install = [*apt, "install", "-y", "--no-install-recommends", *packages]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with (Path(tempfile.gettempdir()) / "gfgw-tests-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other worker may be installing
        for command in (install, [*apt, "update"], install):
            if not _are_there(commands):
                subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False, capture_output=True)
    if not _are_there(commands):
        pytest.skip(f"{what} could not be installed")


def bootstrap(release: str, root: Path, *options: str) -> None:
    """Make a minimal Debian in a directory. Downloads may fail twice: what is there is not downloaded again."""
    attempt(("debootstrap", "--variant=minbase", *options, release, str(root)))


def attempt(command: Sequence[str], tries: int = 3) -> None:
    """Run a command that downloads something until it succeeds."""
    for _ in range(tries):
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode == 0:
            return
    raise AssertionError(
        f"exit code {done.returncode}: {' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    )


def _are_there(commands: Sequence[str]) -> bool:
    return all(map(shutil.which, commands))
