"""Which checkpoints there are in a storage, a run directory or a path."""

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


def list_checkpoints(place: str) -> list[tuple[str, Checkpoint | None, str | None]]:
    """What there is at a run directory, a checkpoint, or the URL of either: name, checkpoint, or why it is none.

    Raises:
        UserError: if there is nothing.
    """
    found: list[tuple[str, Checkpoint | None, str | None]] = []
    for storage, names in _places(place):
        for name in names:
            try:
                found.append((name, open_checkpoint(storage, name), None))
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
    found = [checkpoint for _, checkpoint, _ in list_checkpoints(str(place)) if checkpoint is not None]
    if not found:
        raise UserError(f"{place} holds no whole checkpoint; see gfgw inspect {place}")
    return found


def _places(place: str) -> list[tuple[Storage, list[str]]]:
    """Storages that a place may mean, and names of what may be checkpoints there."""
    if "://" in place:
        above, _, name = place.rstrip("/").rpartition("/")
        try:
            itself, inside = (open_storage(each, make=False) for each in (place.rstrip("/"), above))
            if itself.exists(MANIFEST):
                return [(inside, [name])]
            return [(itself, [name for _, name in step_directories(itself)])]
        except Exception as error:  # the client of an object store raises kinds of its own
            raise UserError(f"{place} cannot be read: {one_line(error, 300)}") from None
    # The functions of os.path take loops of links and names that are too long for what is not there.
    directory = Path(os.path.realpath(place))
    if os.path.isfile(directory / MANIFEST):
        return [(LocalStorage(directory.parent), [directory.name])]
    if not os.path.isdir(directory):
        return []
    return [(storage, [name for _, name in step_directories(storage)]) for storage in _roots(directory)]


def _roots(run_dir: Path) -> list[Storage]:
    """The storage that a run's own ``config.yaml`` names; without one, the directory of checkpoints."""
    from gfgw_prod.settings.reading import read_yaml, resolve
    from gfgw_prod.settings.removed import without_removed

    try:
        settings = resolve(
            without_removed({"checkpoint": read_yaml(run_dir / "config.yaml").get("checkpoint", {})})
        ).checkpoint
    except UserError:  # none, or of another version
        return [LocalStorage(run_dir / "checkpoints")]
    return open_storages(settings.model_copy(update={"upload_to": ""}), run_dir)


NAME = re.compile(r"step-(\d{8,})(-[0-9a-f]{32})?")


def open_checkpoint(storage: Storage, name: str) -> Checkpoint:
    """The checkpoint in a directory of the storage.

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


def _step_of(name: str) -> int | None:
    matched = NAME.fullmatch(name)
    return int(matched[1]) if matched else None


def step_name(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_directories(storage: Storage) -> list[tuple[int, str]]:
    """Steps and names of what may be checkpoints, oldest first."""
    steps = ((_step_of(name), name) for name in storage.committed())
    return sorted((step, name) for step, name in steps if step is not None)


def checkpoints_in(storage: Storage) -> list[Checkpoint]:
    """Committed checkpoints, oldest first; a directory without a whole manifest is none."""
    found = []
    for _, name in step_directories(storage):
        try:
            found.append(open_checkpoint(storage, name))
        except (DamagedError, UserError):  # a UserError: of another version
            continue
    return found
