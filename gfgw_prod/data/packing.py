"""``gfgw pack``: a source once into a pack, in parallel; what was packed before a kill is not packed again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gfgw_prod.data.decoding import Chunk, Shape, common_shape, decoded
from gfgw_prod.data.journal import JOURNAL, Part, Teller, enter, journal_of, parts_so_far
from gfgw_prod.data.listing import Listing
from gfgw_prod.data.packs import INDEX, LABELS, Fingerprint, Pack, Shard
from gfgw_prod.process.durable import sync_directory, write_whole
from gfgw_prod.process.exit_codes import UserError, reason_of
from gfgw_prod.process.standard_streams import printable

SHARD_BYTES = 1 << 28


@dataclass
class Writer:
    """Divides rows into shards, and enters each that is whole in the journal."""

    place: Path
    journal: IO[bytes]
    shard_rows: int
    parts: list[Part]
    fingerprint: Fingerprint
    odd: list[tuple[int, str]] = field(default_factory=list)  # since the last whole shard
    _file: IO[bytes] | None = None
    _digest: Any = None
    _rows: int = 0

    @property
    def next_item(self) -> int:
        """The first item that no whole shard covers."""
        return self.parts[-1].end if self.parts else 0

    def add(self, chunk: Chunk) -> None:
        """The next chunk of items."""
        rest: Chunk | None = chunk
        while rest is not None:
            chunk, rest = _split(rest, self.shard_rows - self._rows)
            self.odd += chunk.odd
            if len(chunk.rows):
                self._write(chunk.rows)
            if self._rows == self.shard_rows:
                self.close_shard(chunk.end)

    def close_shard(self, end: int) -> None:
        """Makes the present shard whole, if there is one; ``end`` is the item after its last."""
        if self._file is None:
            return
        name = _shard_name(len(self.parts))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.place / f".{name}.partial", self.place / name)
        sync_directory(self.place)
        part = Part(name, self._rows, self._digest.hexdigest(), self.next_item, end, self.odd)
        enter(self.journal, vars(part))
        self.parts.append(part)
        self._file, self._rows, self.odd = None, 0, []

    def give_up(self) -> None:
        """Closes what is not whole."""
        if self._file is not None:
            self._file.close()

    def _write(self, rows: NDArray[np.uint8]) -> None:
        if self._file is None:
            self._file = open(self.place / f".{_shard_name(len(self.parts))}.partial", "wb")  # noqa: SIM115
            self._digest = hashlib.sha256()
        content = np.ascontiguousarray(rows).data.cast("B")
        self._file.write(content)
        self._digest.update(content)
        self.fingerprint.add(content)
        self._rows += len(rows)


def pack(
    listing: Listing,
    place: Path,
    *,
    teller: Teller,
    on_error: Literal["fail", "skip"] = "fail",
    workers: int = 0,
    shard_rows: int | None = None,
) -> Pack:
    """Packs a source into the directory ``place``, or goes on with what a process that was killed has left there.

    Args:
        workers: processes that decode; 0 is this one.
        shard_rows: rows of a shard; as many as 256 MiB hold, if ``None``.

    Raises:
        UserError: if ``place`` cannot be written or holds something else, if no image can be taken, or, unless they
            are skipped, if one cannot.
    """
    if os.path.isfile(place / INDEX):
        return _finished(listing, place, teller, on_error)
    try:
        return _packed(listing, place, teller, on_error, workers, shard_rows)
    except OSError as error:
        why = reason_of(error)
        raise UserError(f"{place} cannot be written ({why}); the same command goes on from there") from None


def _finished(listing: Listing, place: Path, teller: Teller, on_error: Literal["fail", "skip"]) -> Pack:
    """The pack that is there already.

    Raises:
        UserError: if it is another, or was made with images left out that may not be.
    """
    found = Pack.read(place)
    if found.identity != listing.identity:
        raise UserError(f"{place} holds the pack of another source or of other settings; name another directory")
    if on_error == "fail" and found.skipped:
        name, why = map(printable, found.skipped[0])
        raise UserError(f"{place} was packed without {name} ({why}); set data.on_error skip, or pack anew elsewhere")
    teller.log(f"{place} is packed already")
    return found


def _packed(
    listing: Listing,
    place: Path,
    teller: Teller,
    on_error: Literal["fail", "skip"],
    workers: int,
    shard_rows: int | None,
) -> Pack:
    shape = common_shape(listing)
    if not listing.labelled:
        teller.log("the source tells no classes: all images are of class 0")
    rows = shard_rows or max(SHARD_BYTES // int(np.prod(shape)), 1)
    head = {"identity": listing.identity, "shape": list(shape), "shard_rows": rows}
    with journal_of(place) as journal:
        if os.path.isfile(place / INDEX):  # another process was faster
            os.unlink(place / JOURNAL)
            return _finished(listing, place, teller, on_error)
        fingerprint = Fingerprint()
        parts = parts_so_far(place, journal, head, fingerprint, teller)
        if on_error == "fail":  # a start that might skip may have packed them
            tell_of_odd(listing, [each for part in parts for each in part.odd], on_error, teller)
        writer = Writer(place, journal, rows, parts, fingerprint)
        try:
            for chunk in decoded(listing, shape, first=writer.next_item, workers=workers):
                tell_of_odd(listing, chunk.odd, on_error, teller)
                writer.add(chunk)
                teller.advance_to(chunk.end)
            writer.close_shard(len(listing))
        finally:
            writer.give_up()
        odd = [each for part in writer.parts for each in part.odd] + writer.odd
        labels = np.concatenate([listing.labels[part.taken()] for part in writer.parts])
        label_bytes = labels.astype("<i8").tobytes()
        write_whole(place / LABELS, label_bytes)
        made = Pack(
            place,
            _three(shape),
            len(labels),
            listing.peak,
            listing.num_classes,
            fingerprint.of(labels, shape, listing.peak, listing.num_classes),
            rows,
            tuple(Shard(part.file, part.rows, part.sha256) for part in writer.parts),
            hashlib.sha256(label_bytes).hexdigest(),
            listing.identity,
            tuple((listing.names[item], why) for item, why in odd),
            listing.rules,
        )
        made.write()
        os.unlink(place / JOURNAL)
    return made


def tell_of_odd(
    listing: Listing, odd: Sequence[tuple[int, str]], on_error: Literal["fail", "skip"], teller: Teller
) -> None:
    """Says what is skipped, a line each.

    Raises:
        UserError: for the first, unless they are to be skipped.
    """
    for item, why in odd:
        name = printable(listing.names[item])
        if on_error == "fail":
            raise UserError(f"data.path: {name} {printable(why)}; mend or remove it, or set data.on_error skip")
        teller.log(f"skipped {name}: {printable(why)}")


def _split(chunk: Chunk, room: int) -> tuple[Chunk, Chunk | None]:
    """At most ``room`` rows of a chunk, with what is odd before and among them; and the rest."""
    if len(chunk.rows) <= room:
        return chunk, None
    at = int(chunk.taken[room])
    before, after = ([each for each in chunk.odd if (each[0] < at) is first] for first in (True, False))
    return (
        Chunk(chunk.begin, at, chunk.rows[:room], chunk.taken[:room], before),
        Chunk(at, chunk.end, chunk.rows[room:], chunk.taken[room:], after),
    )


def _shard_name(number: int) -> str:
    return f"images-{number:05d}.bin"


def _three(shape: Shape) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width
