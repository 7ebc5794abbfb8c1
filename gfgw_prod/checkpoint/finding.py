"""Find checkpoints in a storage, a run directory or at a path that a user names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gfgw_prod.checkpoint.local_storage import LocalStorage
from gfgw_prod.checkpoint.manifest import decode
from gfgw_prod.checkpoint.reading import UNREADABLE, Checkpoint
from gfgw_prod.checkpoint.storage import MANIFEST, Storage
from gfgw_prod.checkpoint.storages import open_storage, open_storages
from gfgw_prod.process.exit_codes import UserError, one_line
from gfgw_prod.weights.unpickling import DamagedError

NAME = re.compile(r"step-(\d{8,})(-[0-9a-f]{32})?")  # behind a URL with the token of the claim
Entry = tuple[str, Checkpoint | None, str | None]  # a directory's name, its checkpoint, the reason why it is none


def step_name(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"step-{step:08d}"


def _step_of(name: str) -> int | None:
    matched = NAME.fullmatch(name)
    return int(matched[1]) if matched else None


def step_directories(storage: Storage) -> list[tuple[int, str]]:
    """Step and name of every directory named like a checkpoint, oldest first."""
    steps = ((_step_of(name), name) for name in storage.committed())
    return sorted((step, name) for step, name in steps if step is not None)


def open_checkpoint(storage: Storage, name: str) -> Checkpoint:
    """The checkpoint in a directory of the storage. Only its manifest is read.

    Raises:
        DamagedError: if its manifest is missing, damaged, or of another step.
        UserError: if another version of this package wrote it.
    """
    try:
        manifest = decode(storage.read(f"{name}/{MANIFEST}"))
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError(f"{MANIFEST} is missing") from None
    except OSError as error:
        raise DamagedError(f"{UNREADABLE} ({one_line(error, 200)})") from None
    except DamagedError as damage:
        raise DamagedError(f"{MANIFEST} {damage}") from None
    except UserError as error:
        raise UserError(f"{storage}/{name} {error}") from None
    if _step_of(name) not in (manifest["step"], None):
        raise DamagedError(f"{MANIFEST} is of step {manifest['step']}")
    return Checkpoint(storage, name, manifest)


def is_good(storage: Storage, name: str) -> bool:
    """Whether a directory holds a checkpoint whose files all match their hashes."""
    try:
        return open_checkpoint(storage, name).problem() is None
    except DamagedError:
        return False


def _open_or_explain(storage: Storage, name: str) -> Entry:
    try:
        return name, open_checkpoint(storage, name), None
    except (DamagedError, UserError) as problem:  # a UserError: of another version
        return name, None, str(problem)


def checkpoints_in(storage: Storage) -> list[Checkpoint]:
    """Checkpoints with a valid manifest of this version, oldest first."""
    entries = (_open_or_explain(storage, name) for _, name in step_directories(storage))
    return [checkpoint for _, checkpoint, _ in entries if checkpoint is not None]


def list_checkpoints(place: str) -> list[Entry]:
    """All checkpoint directories at a place: a run directory, a checkpoint, or the URL of either.

    Raises:
        UserError: if there is none.
    """
    if found := entries_at(place):
        return found
    problem = "holds no checkpoint" if "://" in place or os.path.lexists(place) else "does not exist"
    raise UserError(f"{place} {problem}; name a run directory or one of its checkpoints/step-*")


def entries_at(place: str) -> list[Entry]:
    """Like ``list_checkpoints``, but empty if there is none."""
    return [_open_or_explain(storage, name) for storage, names in _storages_at(place) for name in names]


def find_checkpoints(place: str | Path) -> list[Checkpoint]:
    """Checkpoints with a valid manifest at a place, as ``list_checkpoints`` takes it; oldest first.

    Raises:
        UserError: if there is none.
    """
    found = [checkpoint for _, checkpoint, _ in list_checkpoints(str(place)) if checkpoint is not None]
    if not found:
        raise UserError(f"{place} holds no whole checkpoint; see gfgw inspect {place}")
    return found


def _storages_at(place: str) -> list[tuple[Storage, list[str]]]:
    """Storages that a place refers to, each with the names of its checkpoint directories."""
    if "://" in place:
        parent, _, name = place.rstrip("/").rpartition("/")
        try:
            storage, parent_storage = (open_storage(url, make=False) for url in (place.rstrip("/"), parent))
            if storage.exists(MANIFEST):
                return [(parent_storage, [name])]
            return [(storage, [name for _, name in step_directories(storage)])]
        except Exception as error:  # clients of object stores raise errors of their own kinds
            raise UserError(f"{place} cannot be read: {one_line(error, 300)}") from None
    # os.path treats loops of links and too long names as missing files; pathlib raises.
    directory = Path(os.path.realpath(place))
    if os.path.isfile(directory / MANIFEST):
        return [(LocalStorage(directory.parent), [directory.name])]
    if not os.path.isdir(directory):
        return []
    from gfgw_prod.checkpoint.run_settings import checkpoint_settings

    storages = open_storages(checkpoint_settings(directory).model_copy(update={"upload_to": ""}), directory)
    return [(storage, [name for _, name in step_directories(storage)]) for storage in storages]
