"""Open the storages that the settings name: one to save to, and one to upload to."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gfgw_prod.checkpoint.local_storage import LocalStorage
from gfgw_prod.checkpoint.storage import Storage
from gfgw_prod.process.exit_codes import UserError, reason_of

if TYPE_CHECKING:
    from gfgw_prod.settings.running import CheckpointSettings


def open_storage(place: str | Path, *, make: bool = True) -> Storage:
    """The storage at a directory or a URL; with ``make``, the directory behind a URL is created.

    Raises:
        ValueError: if fsspec does not know the URL's scheme, or lacks a package for it.
    """
    if "://" not in str(place):
        return LocalStorage(Path(place))
    if not str(place).partition("://")[0]:
        raise ValueError("a URL starts with a scheme, such as s3://")
    from gfgw_prod.checkpoint.remote_storage import RemoteStorage

    try:
        return RemoteStorage(str(place), make=make)
    except ImportError as error:
        raise ValueError(f"{place}: {error}") from None


def open_storages(settings: CheckpointSettings, run_dir: Path, *, make: bool = False) -> list[Storage]:
    """The storage of a run's checkpoints and, if there is one, the storage they are uploaded to.

    Raises:
        UserError: if a URL cannot be opened, or a directory cannot be created or written, or is another run's.
    """
    found: list[Storage] = []
    for name, place in (("root", settings.root or run_dir / "checkpoints"), ("upload_to", settings.upload_to)):
        try:
            storage = open_storage(place, make=make) if place else None
            if make and isinstance(storage, LocalStorage):
                _refuse_another_run(storage.directory, run_dir)
                storage.directory.mkdir(parents=True, exist_ok=True)
                if not os.access(storage.directory, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, "it cannot be written")
        except Exception as error:  # clients of object stores raise errors of their own kinds
            raise UserError(f"checkpoint.{name} {place} cannot be used: {reason_of(error)}") from None
        if storage is not None and str(storage) in map(str, found):
            raise UserError(f"checkpoint.{name} {place} is the same as checkpoint.root; name another place")
        found += [storage] if storage is not None else []
    return found


def _refuse_another_run(directory: Path, run_dir: Path) -> None:
    """Raise ``ValueError`` if a directory lies in that of another run, as in the settings of a copied run."""
    here = Path(os.path.realpath(directory))
    runs = (at for at in (here, *here.parents) if os.path.isfile(at / ".lock") and os.path.isdir(at / "checkpoints"))
    nearest = next(runs, None)
    if nearest not in (None, Path(os.path.realpath(run_dir))):
        raise ValueError(f"it lies in the directory of another run, {nearest}; name another place")


def claim_storage(storage: Storage) -> str:
    """Claim a storage for writing; return the claim's token.

    Raises:
        UserError: if nothing can be written there.
    """
    try:
        return storage.claim()
    except Exception as error:  # clients of object stores raise errors of their own kinds
        raise UserError(f"checkpoints cannot be written to {storage}: {reason_of(error)}") from None
