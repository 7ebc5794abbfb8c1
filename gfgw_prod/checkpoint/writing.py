"""DCP's writer over our storage. Bytes are hashed before a disk or a network can change them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from blake3 import blake3
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from gfgw_prod.checkpoint.local_storage import LocalStorage
from gfgw_prod.checkpoint.storage import Storage


class _HashedFile:
    """A file that hashes what is written. It keeps its first error instead of raising it.

    torch's archive writer calls ``write`` from C++, and aborts the process if closing fails after an error.
    """

    def __init__(self, storage: Storage, path: str):
        self._hash = blake3()
        self._raw: IO[bytes] | None = None
        self.bytes = 0
        self.error: Exception | None = None
        with self._keep_error():
            self._raw = storage.create_stream(path, "wb")

    @contextmanager
    def _keep_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # clients of object stores raise errors of their own kinds
            self.error = self.error or error

    def write(self, content: Any) -> int:
        count = memoryview(content).nbytes
        self._hash.update(content)
        self.bytes += count
        if self.error is None and self._raw is not None:
            with self._keep_error():
                self._raw.write(content)
        return count

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        """Do nothing, as ``close`` does: ``finish`` flushes and closes."""

    close = flush

    def finish(self, *, sync: bool) -> str:
        """Flush, sync if asked to, and close the file; return the hash of everything passed to ``write``."""
        if self._raw is not None:
            with self._keep_error():
                self._raw.flush()
                if sync:
                    os.fsync(self._raw.fileno())
            with self._keep_error():
                self._raw.close()
        return self._hash.hexdigest()


class _HashingFiles:
    """A storage, as DCP's writer calls it. ``written`` holds size and hash of each file by path.

    DCP writes files in threads and loses what they raise, so errors are kept and raised by ``check``.
    """

    def __init__(self, storage: Storage):
        self._storage = storage
        self.written: dict[str, dict[str, Any]] = {}
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    @contextmanager
    def create_stream(self, path: str, mode: str) -> Iterator[Any]:
        assert mode == "wb", mode
        file = _HashedFile(self._storage, path)
        try:
            yield file
        finally:
            digest = file.finish(sync=isinstance(self._storage, LocalStorage))
        self.error = self.error or file.error
        self.written[path] = {"bytes": file.bytes, "blake3": digest}

    def check(self) -> None:
        """Raise the first error of any file."""
        if self.error is not None:
            raise self.error

    def rename(self, path: str, new_path: str) -> None:
        self.check()
        self._storage.rename(path, new_path)
        self.written[new_path] = self.written.pop(path)


class HashingWriter(FileSystemWriter):
    """Writes one rank's shards into a directory of the storage, with ``threads`` files at a time."""

    def __init__(self, storage: Storage, directory: str, threads: int):
        # We sync files ourselves: DCP would sync a file while its last bytes are still in Python's buffer.
        super().__init__(directory, sync_files=False, thread_count=threads)
        self._files = _HashingFiles(storage)
        self.fs = self._files  # type: ignore[assignment]  # annotated as FileSystem, works with any
        self.path = directory

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the shards. Raises the first error of any file."""
        results = super().write_data(plan, planner)
        self._files.check()
        return results

    def written(self) -> dict[str, dict[str, Any]]:
        """Size and BLAKE3 hash of this rank's files, by name."""
        return {path.rpartition("/")[2]: entry for path, entry in self._files.written.items()}
