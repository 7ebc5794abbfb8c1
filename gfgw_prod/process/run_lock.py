"""The lock of a run directory, which refuses a second start by mistake, and who holds it. Imports nothing heavy."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

FILE = ".lock"
LOOK_SECONDS = 0.5

_held: list[TextIO] = []  # locks that this process keeps until it ends


def process_identity(job: str | None = None) -> dict[str, Any]:
    """Host, process id and the launcher's job id of this process."""
    job = job or os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": None if job == "none" else job}


def sign(file: TextIO, me: Mapping[str, Any]) -> None:
    """Write into a lock that this process has taken who that is."""
    with suppress(OSError):  # a full disk: the lock holds, but names nobody
        file.seek(0)
        file.truncate()
        file.write(json.dumps(me))
        file.flush()


def holder_in(file: TextIO) -> dict[str, Any]:
    """Identity of the process that took the lock last; empty if it cannot be read."""
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def hold_for_job(run_dir: Path, job: str) -> None:
    """Wait until nobody holds the lock of a run, and keep it until this process, a launcher, ends.

    The ranks of the job know it by its identity, and go on without a lock of their own. They also decide whether a
    directory that has no lock may become a run: it is made here only if there is nothing in it.
    """
    path = run_dir / FILE
    with suppress(OSError):  # the ranks say what is wrong
        run_dir.mkdir(parents=True, exist_ok=True)
        if not any(run_dir.iterdir()):
            path.touch()
    while not path.is_file():
        time.sleep(LOOK_SECONDS)
    with suppress(OSError):  # a file system without locks
        file = path.open("r+", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)
        sign(file, {**process_identity(job), "launcher": True})
        _held.append(file)


def is_of_my_launcher(holder: Mapping[str, Any], me: Mapping[str, Any]) -> bool:
    """Whether the holder of a lock is the launcher of this rank, or that of another node of the same job."""
    own = (holder.get("host"), holder.get("pid")) == (me["host"], os.getppid())
    return holder.get("launcher") is True and (own or (me["job"] is not None and holder.get("job") == me["job"]))
