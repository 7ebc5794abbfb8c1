"""Create a run directory, and lock it against a second start by mistake."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from gfgw_prod.process.durable import clear_partials
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.run_lock import FILE, holder_in, is_of_my_launcher, process_identity, sign
from gfgw_prod.process.standard_streams import Warned

DIRECTORIES = ("checkpoints", "samples", "tensorboard")  # that a run writes
HISTORY = "history.jsonl"  # a line of JSON for each start
FILES = (".lock", "config.yaml", "config.resolved.yaml", HISTORY, "samples.png", "stats.jsonl")
LOCK_SECONDS = 10.0  # to wait for a previous process that is still shutting down


def prepare_directory(run_dir: Path, log: Callable[[str], None]) -> TextIO | None:
    """Create the run directory and lock it.

    Returns:
        The lock, held until the file is closed or the process ends. ``None`` if the job's launcher holds it, if the
        file system has no locks, or if a process of another host or of the same job keeps the lock: the claim on the
        storage fences that off.

    Raises:
        UserError: if the directory is a file, cannot be written, or is in use by another run on this host.
    """
    checkpoints = run_dir / "checkpoints"
    _check_entries(run_dir)
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"run.dir {run_dir} is, or lies under, a file; name a directory") from None
    except OSError as error:
        raise UserError(f"run.dir {run_dir} cannot be made ({error.strerror})") from None
    if not all(os.access(path, os.W_OK | os.X_OK) for path in (run_dir, checkpoints)):
        raise UserError(f"run.dir {run_dir} cannot be written")
    lock = _lock(run_dir, log)
    for directory in (run_dir, run_dir / "samples"):
        clear_partials(directory)
    return lock


def holder_of(run_dir: Path) -> tuple[bool, str]:
    """Whether a process holds the lock of a run, and the host of the last one that did; empty if unknown."""
    try:
        with (run_dir / FILE).open(encoding="utf-8") as file:
            host = str(holder_in(file).get("host", ""))
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # a start at this moment tries again
            except BlockingIOError:
                return True, host
            return False, host
    except (OSError, UnicodeDecodeError):
        return False, ""


def _check_entries(run_dir: Path) -> None:
    """Raise ``UserError`` if an entry that a run writes is of the wrong kind, or a file that no run has written."""
    for names, kind, fits in ((DIRECTORIES, "directory", os.path.isdir), (FILES, "regular file", os.path.isfile)):
        for name in names:
            if os.path.lexists(run_dir / name) and not fits(run_dir / name):
                raise UserError(f"run.dir {run_dir} holds {name}, which is not a {kind}; name another directory")
    if not any(os.path.lexists(run_dir / name) for name in (".lock", "checkpoints")):  # which every run makes first
        for name in (HISTORY, "samples.png", "stats.jsonl"):
            if os.path.lexists(run_dir / name):
                raise UserError(f"run.dir {run_dir} holds {name}, which no run has written; name another directory")


def _lock(run_dir: Path, log: Callable[[str], None]) -> TextIO | None:
    me, file = process_identity(), (run_dir / FILE).open("a+", encoding="utf-8")
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = holder_in(file)
            if is_of_my_launcher(holder, me):
                file.close()
                return None
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            file.close()
            if holder.get("host") == me["host"] and (me["job"] is None or holder.get("job") != me["job"]):
                raise UserError(
                    f"run.dir {run_dir} is in use by process {holder.get('pid')}; stop it, or name another directory"
                ) from None
            log(Warned(f"taking over from process {holder.get('pid')} on {holder.get('host')}, which holds {run_dir}"))
            return None
        except OSError:  # a file system without locks
            file.close()
            return None
        sign(file, me)
        return file
