"""What a data source holds, in row order, before any image is decoded.

A source's module (``folder``, ``archive``, ``parquet``, ``builtin``) lists its entries, and ``make_listing`` checks
their class ids. ``decoding`` turns a listing into rows. No torch is imported, so decoding processes start fast.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gfgw_prod.data.images import Row, Rules
from gfgw_prod.process.exit_codes import UserError, reason_of

MAX_CLASSES = 100_000
DATASET_JSON = "dataset.json"  # the labels in the format of EDM and StyleGAN
# Folders of file systems, desktops and storage servers. They hold no images of the data set, but may hold thumbnails.
SYSTEM_FOLDERS = ("lost+found", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "#recycle")


class Reader(Protocol):
    """Decodes items. It can be pickled, and opens files in the process that uses it."""

    def row(self, item: int) -> Row:
        """Decode an item to a row ``(c, h, w)``.

        Raises:
            InvalidImageError: if it cannot be used.
            UserError: if reading failed for a temporary reason.
        """


class Entry(NamedTuple):
    """An item of a source: its name for messages, its class id, and why it cannot be used if it cannot."""

    name: str
    label: int | None
    invalid: str | None = None


@dataclass(frozen=True)
class Listing:
    """The items of a source. An archive that cannot be read is one invalid item.

    Attributes:
        labels: class ids ``(n,)``, -1 for invalid items.
        peak: pixel value of white.
        invalid: why an item cannot be used, by item.
        identity: changes when the source or the rules change.
        rules: how images are decoded; ``None`` if nothing is decoded.
        notes: lines that the user should read.
    """

    names: Sequence[str]
    labels: NDArray[np.int64]
    num_classes: int
    peak: int
    reader: Reader
    invalid: dict[int, str] = field(default_factory=dict)
    identity: str = ""
    rules: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

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
) -> Listing:
    """List entries in their order, with checked class ids. If none has a label, all are of class 0.

    Args:
        num_classes: if the source states it; else one more than its largest class id.
        identity: the source and the rules, as JSON.
    """
    names: list[str] = []
    labels: list[int] = []
    invalid: dict[int, str] = {}
    entries = list(entries)
    labelled = any(entry.label is not None for entry in entries)
    limit = MAX_CLASSES if num_classes is None else num_classes
    for item, entry in enumerate(entries):
        label = -1 if entry.label is None else entry.label
        why = entry.invalid
        if why is None and labelled and entry.label is None:
            why = "has no label"
        if why is None and labelled and not 0 <= label < limit:
            why = f"has class id {str(label)[:40]}, which should lie between 0 and {limit - 1:,}"
        if why is not None:
            invalid[item] = why
        names.append(entry.name)
        labels.append(-1 if why is not None else max(label, 0))
    ids = np.array(labels, dtype=np.int64)
    classes = num_classes if num_classes is not None else int(ids.max(initial=0)) + 1
    digest = hashlib.sha256(json.dumps([*identity, peak, classes]).encode())
    digest.update(json.dumps(names).encode())
    digest.update(ids.tobytes())
    if not labelled:
        notes = ("the source has no labels: all images are of class 0", *notes)
    rules_by_name = None if rules is None else dict(vars(rules))
    return Listing(names, ids, classes, peak, reader, invalid, digest.hexdigest(), rules_by_name, notes)


def parse_labels(content: bytes) -> dict[str, int | str] | None:
    """Parse ``dataset.json``: class ids by name, or what is wrong with one; ``None`` if it holds no labels.

    Raises:
        ValueError: with the reason, if the file is damaged.
    """
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(parsed, dict):
        raise ValueError("should be an object with a list of labels")
    if parsed.get("labels") is None:
        return None
    if not isinstance(parsed["labels"], list):
        raise ValueError("should hold a list of labels")
    labels: dict[str, int | str] = {}
    for pair in parsed["labels"]:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(f"should list pairs of a name and a class id, not {str(pair)[:60]}")
        name, label = pair
        if name in labels:
            labels[name] = f"has two labels in {DATASET_JSON}"
        elif isinstance(label, bool) or not isinstance(label, int):
            labels[name] = f"has a label in {DATASET_JSON} that is no class id: {str(label)[:40]}"
        else:
            labels[name] = label
    return labels


def label_images(
    images: Iterable[tuple[str, str | None]], labels: dict[str, int | str] | None, prefix: str = ""
) -> Iterator[Entry]:
    """Entries of images (name in ``dataset.json``, why invalid) in their order, then labels without an image.

    Args:
        prefix: stands before the name in messages.
    """
    seen = set()
    for name, invalid in images:
        seen.add(name)
        label = None if labels is None else labels.get(name, f"has no label in {DATASET_JSON}")
        if isinstance(label, str):
            yield Entry(prefix + name, None, invalid or label)
        else:
            yield Entry(prefix + name, label, invalid)
    for name in sorted(set(labels or ()) - seen):
        yield Entry(prefix + name, None, f"is missing, and named in {DATASET_JSON}")


def is_hidden(name: str) -> bool:
    """Whether a file or folder, by its last name, is hidden or the system's."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def is_dataset_json(path: str) -> bool:
    """Whether a relative path names a ``dataset.json``, in upper or lower case."""
    return path.rpartition("/")[2].lower() == DATASET_JSON


def labels_root(paths: Collection[str]) -> str:
    """The folder, with its slash, that ``dataset.json`` names images below: the top, "".

    If everything lies in one folder, as in an archive made by ``zip -r``, and a ``dataset.json`` is in it, that folder.
    """
    tops = {path.partition("/")[0] + "/" for path in paths}
    top = min(tops, default="")
    alone = len(tops) == 1 and any(path.lower() == f"{top}{DATASET_JSON}".lower() for path in paths)
    return top if alone else ""


def unread_labels(paths: Iterable[str], root: str) -> tuple[str, ...]:
    """A note on the ``dataset.json`` files that lie deeper than ``root`` and so are not read."""
    deeper = [path for path in paths if is_dataset_json(path) and "/" in path.removeprefix(root)]
    return (f"{deeper[0]} is not read: labels are read from {root}{DATASET_JSON} only",) if deeper else ()


def find_files(path: Path, suffix: str, source: str) -> list[Path]:
    """The file at ``path``, or all files with the suffix in the directory there, sorted by name.

    Raises:
        UserError: if there is none.
    """
    try:
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path) if name.endswith(suffix) and not is_hidden(name))
            found = [path / name for name in names]
        else:
            found = [path] if os.path.lexists(path) else []
    except OSError as error:
        raise UserError(f"data.path {path} cannot be listed ({reason_of(error)})") from None
    if not found:
        raise UserError(
            f"data.path {path}: no {suffix} file there; data.source {source} wants one, or a directory of them"
        )
    for each in found:
        if not os.path.isfile(each):
            raise UserError(f"data.path {each} is not a regular file")
    return found


def file_state(file: Path) -> tuple[str, int, int]:
    """Name, size and modification time: part of a listing's identity."""
    status = file.stat()
    return file.name, status.st_size, status.st_mtime_ns
