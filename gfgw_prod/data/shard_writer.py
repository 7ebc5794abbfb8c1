"""Writes rows into the shard files of a pack. Finished shards survive a kill.

A finished shard is synced, then gets a small index beside it (``images-00003.json``). A packing that was killed keeps
the shards that have one, and decodes the rest again. The indexes are removed once the pack itself has its index.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gfgw_prod.data.decoding import Chunk
from gfgw_prod.data.packs import INDEX, LABELS, Shard
from gfgw_prod.process.durable import write_whole


@dataclass(frozen=True)
class FinishedShard(Shard):
    """A shard file, and the items ``begin`` to ``end`` that it was made of."""

    begin: int
    end: int
    invalid: list[tuple[int, str]]

    def items(self) -> NDArray[np.int64]:
        """The items whose rows it holds."""
        return np.setdiff1d(np.arange(self.begin, self.end), [item for item, _ in self.invalid])


@dataclass
class ShardWriter:
    """Divides rows into shard files."""

    directory: Path
    shard_rows: int
    made_of: dict[str, Any]  # what the rows depend on, as JSON; a shard made of something else is not reused
    row_digest: Any = field(default_factory=hashlib.sha256)  # of all rows so far
    shards: list[FinishedShard] = field(default_factory=list)  # finished
    invalid: list[tuple[int, str]] = field(default_factory=list)  # items since the last finished shard
    _file: IO[bytes] | None = None
    _digest: Any = None
    _rows: int = 0

    @property
    def next_item(self) -> int:
        """The first item that no finished shard covers."""
        return self.shards[-1].end if self.shards else 0

    def resume(self, log: Callable[[str], None]) -> None:
        """Keep the finished shards up to the first that is missing or damaged; remove all later files."""
        while (shard := self._load(log)) is not None:
            self.shards.append(shard)
        if self.shards:
            log(f"resuming after {sum(shard.rows for shard in self.shards):,} packed images in {self.directory}")
        kept = {name for shard in self.shards for name in (shard.file, _index_of(shard.file))}
        self._remove(lambda name: name not in kept and name.lstrip(".").startswith(("images-", LABELS, INDEX)))

    def add(self, chunk: Chunk) -> None:
        """Write the next chunk of items."""
        rows, items, invalid = chunk.rows, chunk.items, chunk.invalid
        while len(rows) > (room := self.shard_rows - self._rows):
            end = int(items[room])
            self._write(rows[:room], [each for each in invalid if each[0] < end])
            self.finish_shard(end)
            rows, items, invalid = rows[room:], items[room:], [each for each in invalid if each[0] >= end]
        self._write(rows, invalid)
        if self._rows == self.shard_rows:
            self.finish_shard(chunk.end)

    def finish_shard(self, end: int) -> None:
        """Finish the open shard, if there is one; ``end`` is the item after its last."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        name = _name(len(self.shards))
        shard = FinishedShard(name, self._rows, self._digest.hexdigest(), self.next_item, end, self.invalid)
        index = json.dumps({"made_of": self.made_of, "shard": vars(shard)}).encode()
        write_whole(self.directory / _index_of(name), index)  # syncs the directory, and with it the shard's own name
        self.shards.append(shard)
        self._file, self._rows, self.invalid = None, 0, []

    def close(self) -> None:
        """Close the open file."""
        if self._file is not None:
            self._file.close()

    def remove_indexes(self) -> None:
        """Remove the indexes of the shards, once the pack has its own."""
        self._remove(lambda name: name.startswith("images-") and name.endswith(".json"))

    def _remove(self, chosen: Callable[[str], bool]) -> None:
        for name in os.listdir(self.directory):
            if chosen(name):
                os.unlink(self.directory / name)

    def _write(self, rows: NDArray[np.uint8], invalid: list[tuple[int, str]]) -> None:
        self.invalid += invalid
        if not len(rows):
            return
        if self._file is None:
            self._file = open(self.directory / _name(len(self.shards)), "wb")  # noqa: SIM115
            self._digest = hashlib.sha256()
        content = np.ascontiguousarray(rows).data.cast("B")
        self._file.write(content)
        self._digest.update(content)
        self.row_digest.update(content)
        self._rows += len(rows)

    def _load(self, log: Callable[[str], None]) -> FinishedShard | None:
        """The next finished shard, added to the fingerprint, if its bytes are those that were written."""
        name = _name(len(self.shards))
        try:
            index = json.loads((self.directory / _index_of(name)).read_bytes())
            if index["made_of"] != self.made_of:
                log(f"the source or the settings differ from the unfinished pack in {self.directory}: packing anew")
                return None
            invalid = [(item, why) for item, why in index["shard"].pop("invalid")]
            shard = FinishedShard(**index["shard"], invalid=invalid)
            content = np.memmap(self.directory / name, dtype=np.uint8, mode="r")
        except (OSError, ValueError, TypeError, KeyError):  # missing, empty or damaged
            return None
        if hashlib.sha256(content.data).hexdigest() != shard.sha256:
            return None
        self.row_digest.update(content.data)
        return shard


def _name(number: int) -> str:
    return f"images-{number:05d}.bin"


def _index_of(shard_file: str) -> str:
    return shard_file.replace(".bin", ".json")
