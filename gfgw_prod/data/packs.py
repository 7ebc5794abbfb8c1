"""A pack: a data set as memory-mapped shards of bytes, with labels, an index, hashes and a fingerprint.

pack.json        the index, written last: without it there is no pack
labels.bin       class ids, little-endian int64
images-00000.bin rows (c, h, w) of bytes, ``shard_rows`` to a file, the last file perhaps fewer
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gfgw_prod.process.durable import write_whole
from gfgw_prod.process.exit_codes import UserError, reason_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

INDEX, LABELS = "pack.json", "labels.bin"
FORMAT = 1


class Fingerprint:
    """SHA-256 over all rows, all class ids, and what they mean: equal exactly when the data are.

    How rows are divided among files, where they came from and who decoded them has no part in it.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, rows: ReadableBuffer) -> None:
        """The next rows' bytes, in order."""
        self._digest.update(rows)

    def of(self, labels: NDArray[np.int64], shape: Sequence[int], peak: int, num_classes: int) -> str:
        """The fingerprint, once all rows ``(n, *shape)`` were added."""
        digest = self._digest.copy()
        digest.update(labels.astype("<i8").tobytes())
        digest.update(repr((len(labels), *shape, peak, num_classes)).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Shard:
    """One file of rows."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Pack:
    """What the index says."""

    place: Path
    image_shape: tuple[int, int, int]
    rows: int
    peak: int
    num_classes: int
    fingerprint: str
    shard_rows: int
    shards: tuple[Shard, ...]
    labels_sha256: str
    identity: str  # of the source, when it was packed
    skipped: tuple[tuple[str, str], ...]  # name and reason
    rules: dict[str, Any] | None = None  # by which images were decoded; None of what is not decoded

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        channels, height, width = self.image_shape
        return channels * height * width

    @classmethod
    def read(cls, place: Path) -> Pack:
        """The index of a pack, whose files have the lengths that it says.

        Raises:
            UserError: if there is no pack, or it is not whole.
        """
        try:
            if not os.path.isfile(place / INDEX):
                raise UserError(
                    f"data.path {place} holds no {INDEX}; make a pack with `gfgw pack`, and name its directory"
                )
            index = json.loads((place / INDEX).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"data.path {place}: {INDEX} cannot be read ({reason_of(error)})") from None
        if not isinstance(index, dict) or index.get("index_sha256") != _digest_of(index):
            raise UserError(f"data.path {place}: {INDEX} is damaged; pack the data set again")
        if index["format"] != FORMAT:
            raise UserError(f"data.path {place} is a pack of format {index['format']}, not {FORMAT}; pack it again")
        shards = tuple(Shard(**shard) for shard in index["shards"])
        found = cls(
            place,
            tuple(index["image_shape"]),
            index["rows"],
            index["peak"],
            index["num_classes"],
            index["fingerprint"],
            index["shard_rows"],
            shards,
            index["labels_sha256"],
            index["identity"],
            tuple((name, why) for name, why in index["skipped"]),
            index.get("rules"),
        )
        for file, length in ((LABELS, 8 * found.rows), *((s.file, s.rows * found.row_bytes) for s in shards)):
            if not os.path.isfile(place / file) or os.path.getsize(place / file) != length:
                raise UserError(f"data.path {place}: {file} should have {length:,} bytes; pack the data set again")
        return found

    def write(self) -> None:
        """Makes the pack be there: the index is written last, and whole or not at all."""
        index: dict[str, Any] = {name: value for name, value in vars(self).items() if name != "place"}
        index |= {"format": FORMAT, "shards": [vars(shard) for shard in self.shards]}
        index = json.loads(json.dumps(index))  # as it will be read
        index["index_sha256"] = _digest_of(index)
        write_whole(self.place / INDEX, json.dumps(index, indent=1).encode())

    @property
    def bytes(self) -> int:
        """Size of all rows."""
        return self.rows * self.row_bytes

    def damaged(self, part: int = 0, parts: int = 1, told: Callable[[int], None] = lambda more: None) -> str | None:
        """The first of every ``parts``-th file whose bytes are not what was packed, from file ``part`` on.

        Args:
            told: how many bytes more were hashed, a file at a time.
        """
        files = [(LABELS, self.labels_sha256), *((shard.file, shard.sha256) for shard in self.shards)]
        for file, expected in files[part::parts]:
            try:
                if sha256_of(self.place / file) != expected:
                    return f"{file} is damaged"
                told(os.path.getsize(self.place / file))
            except OSError as error:
                return f"{file} cannot be read ({reason_of(error)})"
        return None

    def labels(self) -> NDArray[np.int64]:
        """Class ids ``(N,)``, mapped.

        Raises:
            UserError: if one is out of range.
        """
        labels = np.memmap(self.place / LABELS, dtype="<i8", mode="c", shape=(self.rows,))
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= self.num_classes:
            raise UserError(
                f"data.path {self.place}: {LABELS} holds class ids out of the range 0 to {self.num_classes - 1:,}; "
                "pack the data set again"
            )
        return labels

    def images(self) -> Shards:
        """All rows, mapped."""
        return Shards(self)


class Shards:
    """Rows by number, straight from the files: nothing is kept in memory but what the system caches of them."""

    def __init__(self, pack: Pack):
        self.shape = (pack.rows, *pack.image_shape)
        self._rows, self._row_bytes = pack.shard_rows, pack.row_bytes
        self._maps: list[mmap.mmap] = []
        self._arrays: list[NDArray[np.uint8]] = []
        for shard in pack.shards:
            with open(pack.place / shard.file, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):
                mapped.madvise(mmap.MADV_RANDOM)  # else a row's neighbours would be read with it
            self._maps.append(mapped)
            self._arrays.append(np.frombuffer(mapped, dtype=np.uint8).reshape(shard.rows, *pack.image_shape))

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copies of rows, ``(n,)`` -> ``(n, c, h, w)``."""
        shards, rows = np.divmod(ids, self._rows)
        places = [(number, np.flatnonzero(shards == number)) for number in np.unique(shards)]
        if hasattr(mmap, "MADV_WILLNEED"):  # all are asked for before the first is waited for
            for number, where in places:
                for row in rows[where]:
                    begin = int(row) * self._row_bytes
                    page = begin - begin % mmap.PAGESIZE
                    self._maps[number].madvise(mmap.MADV_WILLNEED, page, begin + self._row_bytes - page)
        found = np.empty((len(ids), *self.shape[1:]), dtype=np.uint8)
        for number, where in places:
            found[where] = self._arrays[number][rows[where]]
        return found


def _digest_of(index: dict[str, Any]) -> str:
    told = {name: value for name, value in index.items() if name != "index_sha256"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
