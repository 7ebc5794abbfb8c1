"""The journal of an unfinished pack: which of its shards are whole, so that a killed packing goes on after them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gfgw_prod.data.packs import INDEX, LABELS, Fingerprint
from gfgw_prod.process.exit_codes import UserError

JOURNAL = "packing.jsonl"  # what it is of, then a line for every shard that is whole


class Teller(Protocol):
    """Whom a packing tells how it goes."""

    def log(self, line: str) -> None:
        """Print a line."""

    def advance_to(self, items: int) -> None:
        """Set how many of the source's items are done."""


@dataclass(frozen=True)
class Part:
    """A shard that is whole, and the items ``begin`` to ``end`` that it was made of."""

    file: str
    rows: int
    sha256: str
    begin: int
    end: int
    odd: list[tuple[int, str]]

    def taken(self) -> NDArray[np.int64]:
        """The items whose rows it holds."""
        return np.setdiff1d(np.arange(self.begin, self.end), [item for item, _ in self.odd])


@contextmanager
def journal_of(place: Path) -> Iterator[IO[bytes]]:
    """The journal of a directory that is made if need be, and that no other process packs into.

    Another may have finished the pack since the caller looked for its index.

    Raises:
        UserError: if another packs into it, or there is something else in it.
    """
    if os.path.lexists(place) and not os.path.isdir(place):
        raise UserError(f"{place} is not a directory; name a new one for the pack")
    place.mkdir(parents=True, exist_ok=True)
    locked = False
    while not locked:
        if os.listdir(place) and not any(os.path.isfile(place / name) for name in (JOURNAL, INDEX)):
            raise UserError(f"{place} is not empty, and holds no unfinished pack; name a new directory for the pack")
        with open(place / JOURNAL, "ab+") as journal:
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process packs into {place}; wait for it, or name another directory") from None
            if locked := _is_at(place / JOURNAL, journal):  # else its packing was finished before the lock was free
                yield journal


def parts_so_far(
    place: Path, journal: IO[bytes], head: dict[str, Any], fingerprint: Fingerprint, teller: Teller
) -> list[Part]:
    """The whole shards of an unfinished pack, from the first to the last that is as it was written."""
    journal.seek(0)
    lines: list[tuple[Any, int]] = []  # what they say, and where they end
    end = 0
    for line in journal.read().splitlines(keepends=True):
        end += len(line)
        try:
            if not line.endswith(b"\n"):
                break
            lines.append((json.loads(line), end))
        except ValueError:  # torn, as is what follows
            break
    parts: list[Part] = []
    whole = 0  # bytes of the journal that stay
    if lines and lines[0][0] == head:
        whole = lines[0][1]
        for entry, end in lines[1:]:
            try:
                part = Part(**{**entry, "odd": [(item, why) for item, why in entry["odd"]]})
            except (TypeError, KeyError, ValueError):  # damaged: as if torn
                break
            if not _is_as_written(place / part.file, part, fingerprint):
                break
            parts.append(part)
            whole = end
    elif lines:
        teller.log(f"the source or the settings are not those of the unfinished pack in {place}: packing anew")
    if parts:
        teller.log(f"going on with {sum(part.rows for part in parts):,} packed images in {place}")
    journal.truncate(whole)  # and not written anew: one that is killed in here loses nothing
    if not whole:
        enter(journal, head)
    kept = {JOURNAL, *(part.file for part in parts)}
    for name in os.listdir(place):
        if name not in kept and name.lstrip(".").startswith(("images-", LABELS, INDEX)):
            os.unlink(place / name)
    return parts


def enter(journal: IO[bytes], entry: dict[str, Any]) -> None:
    """Adds a line, which is on the disk when this returns."""
    journal.write(json.dumps(entry).encode() + b"\n")
    journal.flush()
    os.fsync(journal.fileno())


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _is_as_written(path: Path, part: Part, fingerprint: Fingerprint) -> bool:
    """Whether a shard is; only then it has a part in the fingerprint."""
    try:
        content = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError):  # of an empty file
        return False
    if hashlib.sha256(content.data).hexdigest() != part.sha256:
        return False
    fingerprint.add(content.data)
    return True
