"""Writes rows into the shard files of a pack."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gfgw_prod.data.packs import Shard


@dataclass
class ShardWriter:
    """Divides rows into shard files of ``shard_rows`` rows each, fewer in the last."""

    directory: Path
    shard_rows: int
    row_digest: Any = field(default_factory=hashlib.sha256)  # of all rows so far
    shards: list[Shard] = field(default_factory=list)  # finished
    _file: IO[bytes] | None = None
    _digest: Any = None
    _rows: int = 0

    def add(self, rows: NDArray[np.uint8]) -> None:
        """Write the next rows ``(n, c, h, w)``."""
        while len(rows):
            room = self.shard_rows - self._rows
            self._write(np.ascontiguousarray(rows[:room]))
            rows = rows[room:]
            if self._rows == self.shard_rows:
                self.finish_shard()

    def finish_shard(self) -> None:
        """Sync and close the open shard, if there is one."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        self.shards.append(Shard(_name(len(self.shards)), self._rows, self._digest.hexdigest()))
        self._file, self._rows = None, 0

    def close(self) -> None:
        """Close the open file."""
        if self._file is not None:
            self._file.close()

    def _write(self, rows: NDArray[np.uint8]) -> None:
        if self._file is None:
            self._file = open(self.directory / _name(len(self.shards)), "wb")  # noqa: SIM115
            self._digest = hashlib.sha256()
        content = rows.data.cast("B")
        self._file.write(content)
        self._digest.update(content)
        self.row_digest.update(content)
        self._rows += len(rows)


def _name(number: int) -> str:
    return f"images-{number:05d}.bin"
