"""The interface to a directory or URL that holds checkpoints, and the claim that fences off earlier writers.

Paths are relative to the root and use ``/``.
"""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import IO, Any

from gfgw_prod.process.run_lock import process_identity

WRITING = ".writing-"  # prefix of a claim's directory; only the newest claim's stays
DISCARDED = ".discarded-"  # prefix of a directory that is being deleted
DAMAGED = "damaged-"  # prefix of a quarantined checkpoint
OWNER = "owner.json"
MANIFEST = "manifest.json"
BLOCK = 1 << 22  # bytes read at a time


class Storage(ABC):
    """A root directory of checkpoints. DCP reads and writes through its methods of the same names as DCP's.

    The life of a checkpoint: ``claim`` the root, ``begin`` a directory, write files into it, ``commit`` it.
    """

    def __init__(self, root: str):
        self.root = root

    def __str__(self) -> str:
        return self.root

    # Files and directories.

    @abstractmethod
    def create_stream(self, path: str, mode: str) -> IO[bytes]:
        """Open a file."""

    def concat_path(self, path: str, suffix: str) -> str:
        """The path of an entry of a directory."""
        return f"{path}/{suffix}"

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is a file or directory."""

    @abstractmethod
    def rename(self, path: str, new_path: str) -> None:
        """Rename a file or directory."""

    @abstractmethod
    def mkdir(self, path: str) -> None:
        """Create a directory unless it exists."""

    @abstractmethod
    def names(self, directory: str = "") -> list[str]:
        """Sorted names of a directory's entries; empty if there is no such directory."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Size of a file in bytes, or ``None`` if there is no such file."""

    @abstractmethod
    def write(self, path: str, content: bytes) -> None:
        """Write a small file durably: it survives a power loss, as far as the storage can promise."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file or a directory. A half-removed checkpoint never looks like a whole one."""

    def read(self, path: str) -> bytes:
        """Read a whole small file."""
        with self.create_stream(path, "rb") as stream:
            return stream.read()

    def free_bytes(self) -> int | None:
        """Free space in bytes, or ``None`` if unknown."""
        return None

    # Checkpoints.

    def committed(self) -> list[str]:
        """Names that may be checkpoints."""
        return self.names()

    @abstractmethod
    def quarantine(self, name: str) -> str:
        """Move a damaged checkpoint aside, so that it is no longer committed; return its new name."""

    def quarantined(self) -> list[str]:
        """Names of quarantined checkpoints."""
        return [name for name in self.names() if name.startswith(DAMAGED)]

    @abstractmethod
    def begin(self, name: str, token: str) -> str:
        """Create the directory to write a checkpoint into; return its path.

        Raises:
            FileNotFoundError: if a later claim has fenced this one off.
        """

    def commit(self, path: str, name: str, manifest: bytes, token: str) -> str:
        """Write the manifest as the last file, and turn the directory into a checkpoint; return its name.

        Raises:
            OSError: if a later claim has fenced this one off.
        """
        if not self.holds(token):
            raise OSError(f"the claim on {self} is gone")
        self.write(f"{path}/{MANIFEST}", manifest)
        return self._publish(path, name)

    @abstractmethod
    def _publish(self, path: str, name: str) -> str:
        """Move a complete directory to its final place; return its name there."""

    # Claims.

    def claim(self) -> str:
        """Become the only writer, and fence off all earlier ones; return the claim's token.

        A writer writes through the directory of its claim. A later claim removes that directory, so every later
        operation of the earlier writer fails. No gap remains between a check and the rename that it guards.
        """
        token = uuid.uuid4().hex
        self.mkdir(f"{WRITING}{token}")
        self.write(f"{WRITING}{token}/{OWNER}", json.dumps(process_identity()).encode())
        for name in self.names():
            if name.startswith((WRITING, DISCARDED)) and name != f"{WRITING}{token}":
                self.remove(name)
        return token

    def holds(self, token: str) -> bool:
        """Whether the claim is still the newest one."""
        return self.exists(f"{WRITING}{token}/{OWNER}")

    def release(self, token: str) -> None:
        """Remove a claim at the end of a run. A claim that is left behind does no harm."""
        with suppress(Exception):  # clients of object stores raise errors of their own kinds
            self.remove(f"{WRITING}{token}")

    def owner(self) -> dict[str, Any]:
        """Identity of the process with the newest claim; empty if it cannot be read."""
        for name in self.names():
            if name.startswith(WRITING):
                with suppress(OSError, ValueError):
                    found = json.loads(self.read(f"{name}/{OWNER}"))
                    return found if isinstance(found, dict) else {}
        return {}
