"""Where checkpoints are kept: a local directory, or whatever fsspec reaches by a URL.

Paths are relative to the root and written with ``/``. A writer claims the root first; a later claim fences it off.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from torch.distributed.checkpoint.filesystem import FileSystemBase

WRITING = ".writing-"  # a directory for each claim; only the newest stays
DISCARDED = ".discarded-"  # on its way to be deleted
DAMAGED = "damaged-"
OWNER = "owner.json"
MANIFEST = "manifest.json"
BLOCK = 1 << 22  # bytes read at a time


def process_identity() -> dict[str, Any]:
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
    def quarantine(self, name: str) -> str:
        """Keeps a bad checkpoint where nobody takes it for one; returns its new name."""

    def committed(self) -> list[str]:
        """Names that may be checkpoints."""
        return self.names()

    def quarantined(self) -> list[str]:
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
        self.write(f"{WRITING}{token}/{OWNER}", json.dumps(process_identity()).encode())
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
