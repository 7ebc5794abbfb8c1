"""Write files whole, and durably where a power loss matters."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

ABANDONED_SECONDS = 3600.0  # without growing; far longer than a write takes


def write_whole(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write a file by way of a partial one and a rename: readers see the old content or the new, never a part.

    Several processes may write the same file. After an error the file is unchanged, and no partial one stays.

    Args:
        sync: make the file survive a power loss, which takes the time of two disk flushes.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if sync:
        sync_directory(path.parent)


def clear_partials(directory: Path) -> None:
    """Remove partial files that killed processes left behind.

    A file that grew within the last hour is kept: a process may still be writing it. Should a slower one lose its
    file, its ``write_whole`` raises ``FileNotFoundError``.
    """
    for partial in directory.glob(".*.partial"):
        with suppress(OSError):  # another process may clear them too
            if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                partial.unlink()


def sync_directory(path: Path) -> None:
    """Make renames within a directory survive a power loss."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
