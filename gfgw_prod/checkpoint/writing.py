"""DCP's writer over our storage: every file is hashed on its way, before a disk or a network can change it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from blake3 import blake3
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystemBase

from gfgw_prod.checkpoint.storage import LocalStorage, Storage


class _HashedFile:
    """A file being written. The first error is kept for the end.

    torch's archive writer calls ``write`` from C++, and ends the process if its own end fails after an error.
    """

    def __init__(self, raw: IO[bytes]):
        self._raw = raw
        self._hash = blake3()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        count = memoryview(content).nbytes
        self._hash.update(content)
        self.bytes += count
        if self.error is None:
            try:
                self._raw.write(content)
            except OSError as error:
                self.error = error
        return count

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        if self.error is None:
            self._raw.flush()

    def fileno(self) -> int:
        self.flush()  # DCP syncs the descriptor without flushing what is above it
        return self._raw.fileno()

    def close(self) -> None:
        if self.error is not None:
            raise self.error

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class _HashingFiles(FileSystemBase):
    """The storage, as DCP's writer sees it. ``written`` has each file's size and hash by path."""

    def __init__(self, storage: Storage):
        self._storage = storage
        self.written: dict[str, dict[str, Any]] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        assert mode == "wb", mode
        with self._storage.open(path, mode) as raw:
            file = _HashedFile(raw)
            yield file
            file.close()
        self.written[path] = {"bytes": file.bytes, "blake3": file.hexdigest()}

    def rename(self, path: Any, new_path: Any) -> None:
        self._storage.rename(path, new_path)
        self.written[new_path] = self.written.pop(path)

    def rm_file(self, path: Any) -> None:
        self._storage.rm_file(path)

    def exists(self, path: Any) -> bool:
        return self._storage.exists(path)

    def mkdir(self, path: Any) -> None:
        self._storage.mkdir(path)

    def concat_path(self, path: Any, suffix: str) -> str:
        return self._storage.concat_path(path, suffix)

    def init_path(self, path: Any) -> Any:
        return path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class HashingWriter(FileSystemWriter):
    """Writes one rank's shards into a directory of the storage."""

    def __init__(self, storage: Storage, directory: str):
        super().__init__(directory, sync_files=isinstance(storage, LocalStorage))
        self._files = _HashingFiles(storage)
        self.fs = self._files  # type: ignore[assignment]  # annotated as the local one, used as any
        self.path = directory

    def written(self) -> dict[str, dict[str, Any]]:
        """Size and BLAKE3 hash of this rank's files, by name."""
        return {path.rpartition("/")[2]: entry for path, entry in self._files.written.items()}
