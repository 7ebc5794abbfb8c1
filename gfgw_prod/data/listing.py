"""What a data source holds, in row order, before any image is decoded.

A source's module (``folder``, ``archive``, ``parquet``, ``builtin``) lists its entries, and ``make_listing`` checks
their class ids. ``decoding`` turns a listing into rows. No torch is imported, so decoding processes start fast.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gfgw_prod.data.images import Row, Rules
from gfgw_prod.process.exit_codes import UserError, reason_of
from gfgw_prod.process.standard_streams import printable

MAX_CLASSES = 100_000
# Folders of file systems, desktops and storage servers. They hold no images of the data set, but may hold thumbnails.
SYSTEM_FOLDERS = ("lost+found", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "#recycle")


class Reader(Protocol):
    """Decodes items. It can be pickled, and opens files in the process that uses it."""

    def row(self, item: int) -> Row:
        """Decode an item to ``(c, h, w)``.

        Raises:
            InvalidImageError: if it cannot be used.
            UserError: if it cannot be read at present.
        """


class Entry(NamedTuple):
    """An item of a source: its name for messages, its class id, and why it cannot be used if it cannot."""

    name: str
    label: int | None
    invalid: str | None = None


@dataclass(frozen=True)
class Listing:
    """The items of a source. An archive that cannot be read is one invalid item."""

    names: Sequence[str]
    labels: NDArray[np.int64]  # (n,), -1 for invalid items
    num_classes: int
    peak: int  # pixel value of white
    reader: Reader
    invalid: dict[int, str]  # why an item cannot be used, by item
    identity: str  # changes when the source or the rules change
    rules: dict[str, Any] | None  # of decoding; None if nothing is decoded
    notes: tuple[str, ...]  # lines that the user should read
    class_names: tuple[str, ...]  # by class id, if the source names its classes

    def __len__(self) -> int:
        return len(self.names)


def make_listing(
    entries: Iterable[Entry],
    reader: Reader,
    *,
    peak: int,
    num_classes: int | None,
    identity: Sequence[Any],
    rules: Rules | None = None,
    notes: tuple[str, ...] = (),
    class_names: Sequence[str] = (),
) -> Listing:
    """List entries in their order, with checked class ids. If none has a label, all are of class 0.

    Args:
        num_classes: if the source states it; else one more than its largest class id.
        identity: the source and the rules, as JSON.
    """
    entries = list(entries)
    names = [entry.name for entry in entries]
    labelled = any(entry.label is not None for entry in entries)
    limit = MAX_CLASSES if num_classes is None else num_classes
    ids = np.zeros(len(entries), dtype=np.int64)
    invalid: dict[int, str] = {}
    for item, (_, label, broken) in enumerate(entries):
        why = broken
        if why is None and labelled:
            if label is None:
                why = "has no label"
            elif not 0 <= label < limit:
                why = f"has class id {str(label)[:40]}, which should lie between 0 and {limit - 1:,}"
        if why is not None:
            invalid[item] = why
        ids[item] = -1 if why is not None else label or 0
    classes = num_classes if num_classes is not None else int(ids.max(initial=0)) + 1
    digest = hashlib.sha256(json.dumps([*identity, peak, classes]).encode())
    digest.update(json.dumps(names).encode())
    digest.update(ids.tobytes())
    if not labelled:
        notes = ("the source has no labels: all images are of class 0", *notes)
    decoding = asdict(rules) if rules else None
    names_of_classes = tuple(class_names) if len(class_names) == classes else ()
    return Listing(names, ids, classes, peak, reader, invalid, digest.hexdigest(), decoding, notes, names_of_classes)


def is_hidden(name: str) -> bool:
    """Whether a file or folder, by its last name, is hidden or the system's."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def note_of_others(names: Sequence[str]) -> tuple[str, ...]:
    """A line on files that are not named like images, if there are any."""
    if not names:
        return ()
    kinds = sorted({PurePath(name).suffix.lower() or "no suffix" for name in names})
    shown = printable(", ".join(kinds[:5])) + ", ..." * (len(kinds) > 5)
    return (f"left out {len(names):,} file{'s' * (len(names) > 1)} not named like images ({shown})",)


def find_files(path: Path, suffix: str, source: str) -> list[Path]:
    """The file at ``path``, or all with the suffix in that directory, by name; ``UserError`` if there is none."""
    try:
        found = [path] if os.path.lexists(path) else []
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path) if name.endswith(suffix) and not is_hidden(name))
            found = [path / name for name in names]
    except OSError as error:
        raise UserError(f"data.path {path} cannot be listed ({reason_of(error)})") from None
    if not found:
        wanted = f"data.source {source} wants one, or a directory of them"
        raise UserError(f"data.path {path}: no {suffix} file there; {wanted}")
    for each in found:
        if not os.path.isfile(each):
            raise UserError(f"data.path {each} is not a regular file")
    return found


def file_state(file: Path) -> tuple[str, int, int]:
    """Name, size and modification time: part of a listing's identity."""
    status = file.stat()
    return file.name, status.st_size, status.st_mtime_ns
