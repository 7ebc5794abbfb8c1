"""The directory of a run: made, locked against a second start by mistake, and where its checkpoints are."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gfgw_prod.checkpoint.storage import process_identity
from gfgw_prod.process.exit_codes import UserError

if TYPE_CHECKING:
    pass

DIRECTORIES = ("checkpoints", "samples", "tensorboard")  # that a run makes in its own
FILES = (".lock", "config.yaml", "samples.png", "stats.jsonl")
LOCK_SECONDS = 10.0  # how long a run waits for a predecessor that is on its way out


def prepare_directory(run_dir: Path, report: Callable[[str], None]) -> TextIO | None:
    """Makes the run directory.

    Returns:
        The directory's lock, held until the file is closed or the process ends; ``None`` where there are no locks, or
        a process of another host, or of this job, holds it and does not let go: claims fence that one off.

    Raises:
        UserError: if it is a file, cannot be written or is in use by another run's process on this host.
    """
    place = run_dir / "checkpoints"
    _refuse_other_kinds(run_dir)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"run.dir {run_dir} is, or lies under, a file; name a directory") from None
    except OSError as error:
        raise UserError(f"run.dir {run_dir} cannot be made ({error.strerror})") from None
    if not all(os.access(path, os.W_OK | os.X_OK) for path in (run_dir, place)):
        raise UserError(f"run.dir {run_dir} cannot be written")
    return _locked(run_dir, report)


def _refuse_other_kinds(run_dir: Path) -> None:
    for names, kind, fits in ((DIRECTORIES, "directory", os.path.isdir), (FILES, "regular file", os.path.isfile)):
        for name in names:
            if os.path.lexists(run_dir / name) and not fits(run_dir / name):
                raise UserError(f"run.dir {run_dir} holds {name}, which is no {kind}; name another directory")


def _locked(run_dir: Path, report: Callable[[str], None]) -> TextIO | None:
    me, file = process_identity(), (run_dir / ".lock").open("a+", encoding="utf-8")
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            holder = _holder(file)
            file.close()
            if holder.get("host") == me["host"] and (me["job"] is None or holder.get("job") != me["job"]):
                raise UserError(
                    f"run.dir {run_dir} is in use by process {holder.get('pid')}; stop it, or name another directory"
                ) from None
            report(f"taking over from process {holder.get('pid')} on {holder.get('host')}, which holds {run_dir}")
            return None
        except OSError:  # a file system without locks
            file.close()
            return None
        with suppress(OSError):  # a full disk: nobody will know who it is
            file.truncate(0)
            file.write(json.dumps(me))
            file.flush()
        return file


def _holder(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
