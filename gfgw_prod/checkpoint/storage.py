"""Where checkpoints are kept: a local directory, or whatever fsspec reaches by a URL.

Paths are relative to the root and written with ``/``. A writer claims the root first; a later claim fences it off.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import uuid
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from torch.distributed.checkpoint.filesystem import FileSystemBase

from gfgw_prod.durable import sync_directory

WRITING = ".writing-"  # a directory for each claim; only the newest stays
DISCARDED = ".discarded-"  # on its way to be deleted
DAMAGED = "damaged-"
OWNER = "owner.json"
MANIFEST = "manifest.json"
BLOCK = 1 << 22  # bytes read at a time


def whoami() -> dict[str, Any]:
    """This process, for others to name; ``job`` is the launcher's."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": None if job == "none" else job}


class Storage(FileSystemBase):
    """A root for checkpoints: what DCP reads and writes through, and the few steps of their life cycle."""

    def __init__(self, root: str):
        self.root = root

    def __str__(self) -> str:
        return self.root

    # What DCP calls.

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        """An open file."""
        with self.open(path, mode) as stream:
            yield stream

    def concat_path(self, path: Any, suffix: str) -> str:
        return f"{path}/{suffix}"

    def init_path(self, path: Any) -> Any:
        return path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    # What the life cycle adds.

    @abstractmethod
    def open(self, path: str, mode: str) -> IO[bytes]:
        """Opens a file."""

    @abstractmethod
    def names(self, directory: str = "") -> list[str]:
        """Sorted names of what is in a directory; none if it is not there."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Bytes of a file, or ``None`` if there is none."""

    @abstractmethod
    def write(self, path: str, content: bytes) -> None:
        """Writes a small file; once this returns it survives a loss of power, as far as the storage can."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Removes a file or a whole directory, so that at no moment half a checkpoint looks like one."""

    @abstractmethod
    def set_aside(self, name: str) -> str:
        """Keeps a bad checkpoint where nobody takes it for one; returns its new name."""

    def committed(self) -> list[str]:
        """Names that may be checkpoints."""
        return self.names()

    def damaged(self) -> list[str]:
        """Names of what was set aside."""
        return [name for name in self.names() if name.startswith(DAMAGED)]

    @abstractmethod
    def begin(self, name: str, token: str) -> str:
        """The directory to write a checkpoint into.

        Raises:
            FileNotFoundError: if another claim has fenced this one off.
        """

    @abstractmethod
    def commit(self, path: str, name: str) -> str:
        """Makes a directory with its manifest a checkpoint; returns its name.

        Raises:
            FileNotFoundError: if another claim has fenced this one off.
        """

    def free_bytes(self) -> int | None:
        """Bytes that can still be written, or ``None`` where that is not known."""
        return None

    def read(self, path: str) -> bytes:
        """A whole small file."""
        with self.open(path, "rb") as stream:
            return stream.read()

    def claim(self) -> str:
        """Makes this process the one that writes here, and fences off all others; returns the claim's token.

        What is written goes through the claim's own directory. A later claim moves that directory away, so whatever
        an earlier process does after that fails: there is no moment between a check and the rename that it guards.
        """
        token = uuid.uuid4().hex
        self.mkdir(f"{WRITING}{token}")
        self.write(f"{WRITING}{token}/{OWNER}", json.dumps(whoami()).encode())
        for name in self.names():
            if name.startswith((WRITING, DISCARDED)) and name != f"{WRITING}{token}":
                self.remove(name)
        return token

    def holds(self, token: str) -> bool:
        """Whether nobody has claimed the root since."""
        return bool(self.exists(f"{WRITING}{token}/{OWNER}"))

    def release(self, token: str) -> None:
        """Gives up a claim at the end of a run; one that stays is in nobody's way."""
        with suppress(Exception):  # of whatever kind the storage raises
            self.remove(f"{WRITING}{token}")

    def owner(self) -> dict[str, Any]:
        """Who claimed the root last, as far as it can be read."""
        for name in self.names():
            if name.startswith(WRITING):
                with suppress(OSError, ValueError):
                    found = json.loads(self.read(f"{name}/{OWNER}"))
                    return found if isinstance(found, dict) else {}
        return {}


class LocalStorage(Storage):
    """A directory, local or on a file system that all ranks share."""

    def __init__(self, root: Path):
        super().__init__(str(root))
        self.directory = root

    def open(self, path: str, mode: str) -> IO[bytes]:
        return (self.directory / path).open(mode)

    def names(self, directory: str = "") -> list[str]:
        try:
            return sorted(os.listdir(self.directory / directory))
        except FileNotFoundError:
            return []

    def size(self, path: str) -> int | None:
        file = self.directory / path
        return file.stat().st_size if file.is_file() else None

    def exists(self, path: Any) -> bool:
        return os.path.exists(self.directory / path)

    def rename(self, path: Any, new_path: Any) -> None:
        (self.directory / path).rename(self.directory / new_path)

    def rm_file(self, path: Any) -> None:
        (self.directory / path).unlink()

    def mkdir(self, path: Any) -> None:
        # Never with parents: the directory of a claim that was fenced off must not come back.
        (self.directory / path).mkdir(exist_ok=True)

    def write(self, path: str, content: bytes) -> None:
        with self.open(path, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    def remove(self, path: str) -> None:
        place = self.directory / path
        if place.is_dir() and not path.startswith(DISCARDED):
            moved = self.directory / f"{DISCARDED}{uuid.uuid4().hex}"
            place.rename(moved)
            place = moved
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)

    def set_aside(self, name: str) -> str:
        kept = f"{DAMAGED}{name}-{time.time_ns()}"
        self.rename(name, kept)
        return kept

    def begin(self, name: str, token: str) -> str:
        path = f"{WRITING}{token}/{name}"
        if self.exists(path):
            self.remove(path)  # of a save that failed
        (self.directory / path).mkdir()
        return path

    def commit(self, path: str, name: str) -> str:
        sync_directory(self.directory / path)
        self.rename(path, name)
        sync_directory(self.directory)
        return name

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.directory).free


def storage_at(place: str | Path, *, make: bool = True) -> Storage:
    """The storage of a directory or a URL.

    Args:
        make: make what is behind a URL if it is not there.

    Raises:
        ValueError: for a URL whose scheme fsspec does not know or cannot serve here.
    """
    if "://" not in str(place):
        return LocalStorage(Path(place))
    if not str(place).partition("://")[0]:
        raise ValueError("a URL begins with a kind of storage, such as s3://")
    from gfgw_prod.checkpoint.remote_storage import RemoteStorage

    try:
        return RemoteStorage(str(place), make=make)
    except ImportError as error:
        raise ValueError(f"{place}: {error}") from None
