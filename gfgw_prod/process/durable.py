"""Files and renames that outlive a loss of power."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

ABANDONED_SECONDS = 3600.0  # without a byte more: far longer than a file takes to be written


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all, whoever else writes the same."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def clear_partials(directory: Path) -> None:
    """Removes what killed processes had begun to write with ``write_whole``.

    A file that grew within the last hour may still be written. Should one that has not be written after all, its
    writer finds it gone, as if there were no room.
    """
    for partial in directory.glob(".*.partial"):
        with suppress(OSError):  # another process clears them too
            if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                partial.unlink()


def sync_directory(path: Path) -> None:
    """Makes renames in a directory last."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
