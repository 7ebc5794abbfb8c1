"""Checkpoints at a URL, through fsspec."""

from __future__ import annotations

from contextlib import suppress
from typing import IO

from fsspec.core import url_to_fs

from gfgw_prod.checkpoint.storage import DAMAGED, MANIFEST, WRITING, Storage


class RemoteStorage(Storage):
    """A URL that fsspec reads, such as ``s3://bucket/run``.

    Object stores cannot rename a directory atomically. A checkpoint is written in its final place, under a name with
    the token of its claim; the manifest, written last, commits it. A writer that was fenced off can still commit
    between its check and that last write. What it commits is complete and overwrites nothing.
    """

    def __init__(self, url: str, *, make: bool):
        super().__init__(url)
        self.fs, self.base = url_to_fs(url)
        if make:
            self.fs.makedirs(self.base, exist_ok=True)

    def _at(self, path: str) -> str:
        return f"{self.base}/{path}"

    def create_stream(self, path: str, mode: str) -> IO[bytes]:
        stream: IO[bytes] = self.fs.open(self._at(path), mode)
        return stream

    def names(self, directory: str = "") -> list[str]:
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self._at(directory).rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

    def size(self, path: str) -> int | None:
        try:
            entry = self.fs.info(self._at(path))
        except FileNotFoundError:
            return None
        return int(entry["size"]) if entry["type"] == "file" else None

    def exists(self, path: str) -> bool:
        return bool(self.fs.exists(self._at(path)))

    def rename(self, path: str, new_path: str) -> None:
        self.fs.mv(self._at(path), self._at(new_path))

    def mkdir(self, path: str) -> None:
        self.fs.makedirs(self._at(path), exist_ok=True)

    def write(self, path: str, content: bytes) -> None:
        self.fs.pipe_file(self._at(path), content)

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(self._at(f"{path}/{MANIFEST}"))
        with suppress(FileNotFoundError):
            self.fs.rm(self._at(path), recursive=True)

    def quarantine(self, name: str) -> str:
        with suppress(FileNotFoundError):
            self.rename(f"{name}/{MANIFEST}", f"{name}/{DAMAGED}{MANIFEST}")
        return name

    def committed(self) -> list[str]:
        return [name for name in self.names() if self.exists(f"{name}/{MANIFEST}")]

    def quarantined(self) -> list[str]:
        return [name for name in self.names() if self.exists(f"{name}/{DAMAGED}{MANIFEST}")]

    def claim(self) -> str:
        token = super().claim()
        # Unfinished saves lie beside the checkpoints.
        for name in set(self.names()) - {*self.committed(), *self.quarantined(), f"{WRITING}{token}"}:
            if name.startswith("step-"):
                self.remove(name)
        return token

    def begin(self, name: str, token: str) -> str:
        if not self.holds(token):
            raise FileNotFoundError(f"{WRITING}{token}")
        path = f"{name}-{token}"
        self.remove(path)  # left by a failed save
        self.mkdir(path)
        return path

    def _publish(self, path: str, name: str) -> str:
        return path
