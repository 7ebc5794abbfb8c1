"""The directory of a run: made, locked against a second start by mistake, and where its checkpoints are."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gfgw_prod.checkpoint.manifest import DamagedError
from gfgw_prod.checkpoint.reading import Checkpoint, candidates, find
from gfgw_prod.checkpoint.storage import MANIFEST, LocalStorage, Storage, storage_at, whoami
from gfgw_prod.resilience.exit_codes import UserError, one_line, reason

if TYPE_CHECKING:
    from gfgw_prod.config import CheckpointSettings

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
    me, file = whoami(), (run_dir / ".lock").open("a+", encoding="utf-8")
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


def storages_of(settings: CheckpointSettings, run_dir: Path, *, make: bool = False) -> list[Storage]:
    """Where a run keeps its checkpoints, and where it uploads them, if it does.

    Args:
        make: make directories that are not there.

    Raises:
        UserError: for a URL of a kind that nothing here can serve, or a directory that cannot be made or written.
    """
    found: list[Storage] = []
    for name, place in (("root", settings.root or run_dir / "checkpoints"), ("upload_to", settings.upload_to)):
        try:
            storage = storage_at(place, make=make) if place else None
            if make and isinstance(storage, LocalStorage):
                storage.directory.mkdir(parents=True, exist_ok=True)
                if not os.access(storage.directory, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, "it cannot be written")
        except Exception as error:  # the client of an object store raises kinds of its own
            raise UserError(f"checkpoint.{name} {place} cannot be used: {reason(error)}") from None
        if storage is not None and str(storage) in map(str, found):
            raise UserError(f"checkpoint.{name} {place} is checkpoint.root; name another place")
        found += [storage] if storage is not None else []
    return found


def claimed(storage: Storage) -> str:
    """The token of a claim on a storage.

    Raises:
        UserError: if nothing can be written there.
    """
    try:
        return storage.claim()
    except Exception as error:  # the client of an object store raises kinds of its own
        raise UserError(f"checkpoints cannot be written to {storage}: {reason(error)}") from None


def listed(place: str) -> list[tuple[str, Checkpoint | None, str | None]]:
    """What there is at a run directory, a checkpoint, or the URL of either: name, checkpoint, or why it is none.

    Raises:
        UserError: if there is nothing.
    """
    found: list[tuple[str, Checkpoint | None, str | None]] = []
    for storage, names in _places(place):
        for name in names:
            try:
                found.append((name, find(storage, name), None))
            except (DamagedError, UserError) as problem:  # a UserError: of another version
                found.append((name, None, str(problem)))
    if not found:
        raise UserError(f"{place} holds no checkpoint; name a run directory or one of its checkpoints/step-*")
    return found


def find_checkpoints(place: str | Path) -> list[Checkpoint]:
    """Checkpoints of a run, oldest first, or the one that ``place`` is.

    Raises:
        UserError: if there is none, or another version of this package wrote it.
    """
    found = [checkpoint for _, checkpoint, _ in listed(str(place)) if checkpoint is not None]
    if not found:
        raise UserError(f"{place} holds no whole checkpoint; see gfgw inspect {place}")
    return found


def _places(place: str) -> list[tuple[Storage, list[str]]]:
    """Storages that a place may mean, and names of what may be checkpoints there."""
    if "://" in place:
        above, _, name = place.rstrip("/").rpartition("/")
        try:
            itself, inside = (storage_at(each, make=False) for each in (place.rstrip("/"), above))
            if itself.exists(MANIFEST):
                return [(inside, [name])]
            return [(itself, [name for _, name in candidates(itself)])]
        except Exception as error:  # the client of an object store raises kinds of its own
            raise UserError(f"{place} cannot be read: {one_line(error, 300)}") from None
    # The functions of os.path take loops of links and names that are too long for what is not there.
    directory = Path(os.path.realpath(place))
    if os.path.isfile(directory / MANIFEST):
        return [(LocalStorage(directory.parent), [directory.name])]
    if not os.path.isdir(directory):
        return []
    return [(storage, [name for _, name in candidates(storage)]) for storage in _roots(directory)]


def _roots(run_dir: Path) -> list[Storage]:
    """The storage that a run's own ``config.yaml`` names; without one, the directory of checkpoints."""
    from gfgw_prod.settings_io import read_yaml, resolve

    try:
        settings = resolve({"checkpoint": read_yaml(run_dir / "config.yaml").get("checkpoint", {})}).checkpoint
    except UserError:  # none, or of another version
        return [LocalStorage(run_dir / "checkpoints")]
    return storages_of(settings.model_copy(update={"upload_to": ""}), run_dir)
