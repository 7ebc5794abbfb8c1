"""Checkpoints in a directory of a file system."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from pathlib import Path
from typing import IO

from gfgw_prod.checkpoint.storage import DAMAGED, DISCARDED, WRITING, Storage
from gfgw_prod.process.durable import sync_directory


class LocalStorage(Storage):
    """A directory, local or on a file system that all ranks share."""

    def __init__(self, root: Path):
        super().__init__(str(root))
        self.directory = root

    def create_stream(self, path: str, mode: str) -> IO[bytes]:
        return (self.directory / path).open(mode)

    def names(self, directory: str = "") -> list[str]:
        try:
            return sorted(os.listdir(self.directory / directory))
        except FileNotFoundError:
            return []

    def size(self, path: str) -> int | None:
        file = self.directory / path
        return file.stat().st_size if file.is_file() else None

    def exists(self, path: str) -> bool:
        return os.path.exists(self.directory / path)

    def rename(self, path: str, new_path: str) -> None:
        (self.directory / path).rename(self.directory / new_path)

    def mkdir(self, path: str) -> None:
        # Never with parents: that would bring back the directory of a claim that was fenced off.
        (self.directory / path).mkdir(exist_ok=True)

    def write(self, path: str, content: bytes) -> None:
        with self.create_stream(path, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    def remove(self, path: str) -> None:
        target = self.directory / path
        if target.is_dir() and not path.startswith(DISCARDED):
            discarded = self.directory / f"{DISCARDED}{uuid.uuid4().hex}"
            target.rename(discarded)
            target = discarded
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)

    def quarantine(self, name: str) -> str:
        new_name = f"{DAMAGED}{name}-{time.time_ns()}"
        self.rename(name, new_name)
        return new_name

    def begin(self, name: str, token: str) -> str:
        path = f"{WRITING}{token}/{name}"
        if self.exists(path):
            self.remove(path)  # left by a failed save
        (self.directory / path).mkdir()
        return path

    def _publish(self, path: str, name: str) -> str:
        sync_directory(self.directory / path)
        self.rename(path, name)
        sync_directory(self.directory)
        return name

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.directory).free
