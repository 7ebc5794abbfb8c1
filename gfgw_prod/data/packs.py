"""The format of a pack: a decoded data set in memory-mapped files, with hashes and a fingerprint.

pack.json        the index, written last: without it the pack is unfinished
labels.bin       class ids, little-endian int64
images-00000.bin a shard: rows (c, h, w), uint8, ``shard_rows`` to a file, fewer in the last
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfgw_prod.process.durable import write_whole
from gfgw_prod.process.exit_codes import UserError, reason_of
from gfgw_prod.process.meter import MB, Meter, Mode

INDEX, LABELS = "pack.json", "labels.bin"
FORMAT = 1


def fingerprint_of(rows: Any, labels: NDArray[np.int64], shape: Sequence[int], peak: int, num_classes: int) -> str:
    """SHA-256 over all rows, class ids, shape, peak and number of classes: equal exactly when the data are equal.

    It does not depend on the division into files, the kind of source or the number of decoding processes. ``rows`` is a
    ``hashlib.sha256`` of all rows, in order, and is updated.
    """
    rows.update(labels.astype("<i8").tobytes())
    rows.update(repr((len(labels), *shape, peak, num_classes)).encode())
    return str(rows.hexdigest())


@dataclass(frozen=True)
class Shard:
    """One file of rows."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Pack:
    """The index of a pack."""

    directory: Path
    image_shape: tuple[int, int, int]
    rows: int
    peak: int
    num_classes: int
    fingerprint: str
    shard_rows: int
    shards: tuple[Shard, ...]
    labels_sha256: str
    identity: str  # of the source when it was packed
    skipped: tuple[tuple[str, str], ...]  # name and reason
    rules: dict[str, Any] | None = None  # of decoding; None for a source of arrays
    class_names: tuple[str, ...] = ()  # by class id, if the source names its classes

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.image_shape)

    @classmethod
    def read(cls, directory: Path) -> Pack:
        """Read the index and check the lengths of all files; ``UserError`` without a pack, or if it is damaged."""
        if not os.path.isfile(directory / INDEX):
            advice = "make a pack with `gfgw pack`, and name its directory"
            raise UserError(f"{directory} holds no {INDEX}; {advice}")
        try:
            index = json.loads((directory / INDEX).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{directory}: {INDEX} cannot be read ({reason_of(error)})") from None
        if not isinstance(index, dict) or index.get("index_sha256") != _digest_of(index):
            raise UserError(f"{directory}: {INDEX} is damaged; pack the data set again")
        if index["format"] != FORMAT:
            raise UserError(f"{directory} is a pack of format {index['format']}, not {FORMAT}; pack it again")
        index["image_shape"] = tuple(index["image_shape"])
        index["class_names"] = tuple(index.get("class_names", ()))
        index["shards"] = tuple(Shard(**shard) for shard in index["shards"])
        index["skipped"] = tuple((name, why) for name, why in index["skipped"])
        known = {field.name for field in fields(cls)}
        found = cls(directory, **{name: value for name, value in index.items() if name in known})
        for file, length in ((LABELS, 8 * found.rows), *((s.file, s.rows * found.row_bytes) for s in found.shards)):
            if not os.path.isfile(directory / file) or os.path.getsize(directory / file) != length:
                raise UserError(f"{directory}: {file} should have {length:,} bytes; pack the data set again")
        return found

    def write(self) -> None:
        """Write the index, which finishes the pack."""
        index: dict[str, Any] = {name: value for name, value in vars(self).items() if name != "directory"}
        index |= {"format": FORMAT, "shards": [vars(shard) for shard in self.shards]}
        index = json.loads(json.dumps(index))  # the digest is over what will be read
        index["index_sha256"] = _digest_of(index)
        write_whole(self.directory / INDEX, json.dumps(index, indent=1).encode())

    def check(self, part: int = 0, parts: int = 1, progress: Mode = "off") -> None:
        """Hash every ``parts``-th file, from file ``part`` on; ``UserError`` naming the first that is damaged."""
        files = [(LABELS, self.labels_sha256), *((shard.file, shard.sha256) for shard in self.shards)]
        total = self.rows * self.row_bytes // parts
        with Meter(f"checking {self.directory}", total, "MB", scale=MB, mode=progress) as meter:
            for file, expected in files[part::parts]:
                try:
                    problem = "" if sha256_of(self.directory / file) == expected else "is damaged"
                    meter.advance(os.path.getsize(self.directory / file))
                except OSError as error:
                    problem = f"cannot be read ({reason_of(error)})"
                if problem:
                    raise UserError(f"{self.directory}: {file} {problem}; pack the data set again")

    def labels(self) -> NDArray[np.int64]:
        """Class ids ``(N,)``, mapped; ``UserError`` if one is out of range."""
        labels = np.memmap(self.directory / LABELS, dtype="<i8", mode="c", shape=(self.rows,))
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= self.num_classes:
            ids = f"class ids out of the range 0 to {self.num_classes - 1:,}"
            raise UserError(f"{self.directory}: {LABELS} holds {ids}; pack the data set again")
        return labels


class Shards:
    """Rows by id, from memory-mapped files. Only the system's page cache takes memory."""

    def __init__(self, pack: Pack):
        self.shape = (pack.rows, *pack.image_shape)
        self._rows, self._row_bytes = pack.shard_rows, pack.row_bytes
        self._maps: list[mmap.mmap] = []
        self._arrays: list[NDArray[np.uint8]] = []
        for shard in pack.shards:
            with open(pack.directory / shard.file, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):
                mapped.madvise(mmap.MADV_RANDOM)  # without it the system also reads the rows nearby
            self._maps.append(mapped)
            self._arrays.append(np.frombuffer(mapped, dtype=np.uint8).reshape(shard.rows, *pack.image_shape))

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy rows by id, ``(n,)`` -> ``(n, c, h, w)``."""
        shards, rows = np.divmod(ids, self._rows)
        by_shard = [(number, np.flatnonzero(shards == number)) for number in np.unique(shards)]
        if hasattr(mmap, "MADV_WILLNEED"):  # request all rows before waiting for the first
            for number, where in by_shard:
                for row in rows[where]:
                    begin = int(row) * self._row_bytes
                    page = begin - begin % mmap.PAGESIZE
                    self._maps[number].madvise(mmap.MADV_WILLNEED, page, begin + self._row_bytes - page)
        found = np.empty((len(ids), *self.shape[1:]), dtype=np.uint8)
        for number, where in by_shard:
            found[where] = self._arrays[number][rows[where]]
        return found


class SomeRows:
    """Some rows of ``Shards``, by id ``(n,)``; read when they are taken."""

    def __init__(self, shards: Shards | SomeRows, ids: NDArray[np.int64]):
        self.shape: tuple[int, ...] = (len(ids), *shards.shape[1:])
        self._shards, self._ids = shards, ids

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy rows by their place among these, ``(n,)`` -> ``(n, c, h, w)``."""
        return self._shards.take(self._ids[ids])


def _digest_of(index: dict[str, Any]) -> str:
    content = {name: value for name, value in index.items() if name != "index_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
