"""A tree of image files: classes by the folders at its top, or by EDM's ``dataset.json`` there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfgw_prod.data.images import MOST_BYTES, SUFFIXES, OddImageError, Row, Rules, refuse_passing
from gfgw_prod.data.listing import DATASET_JSON, Entry, Listing, labelled, labels_of, listing_of
from gfgw_prod.process.exit_codes import UserError, reason_of


@dataclass(frozen=True)
class FolderReader:
    """Reads image files below a directory by their relative names."""

    root: Path
    names: Sequence[str]
    rules: Rules

    def row(self, item: int) -> Row:
        try:
            with open(self.root / self.names[item], "rb") as file:
                content = file.read(MOST_BYTES + 1)
        except (OSError, MemoryError) as error:
            refuse_passing(error, self.root / self.names[item])
            raise OddImageError(f"cannot be read: {reason_of(error)}") from None
        if len(content) > MOST_BYTES:
            raise OddImageError(f"is larger than {MOST_BYTES >> 20} MiB")
        return self.rules.decode(content)


@dataclass(frozen=True)
class _Found:
    name: str  # relative, with slashes
    size: int
    changed: int
    odd: str | None = None


def list_folder(root: Path, rules: Rules) -> Listing:
    """All images below ``root``. Hidden files and files of other kinds are passed over.

    With a ``dataset.json`` they are sorted by name; else by name below their class's folder, and by class where that is
    alike: files that are numbered throughout come in the order of their numbers, whatever folder each lies in.

    Raises:
        UserError: if there is no such directory, it cannot be read now, or its ``dataset.json`` is damaged.
    """
    if not os.path.isdir(root):
        raise UserError(f"data.path {root} is not a directory; data.source folder wants one with images in it")
    found = sorted(_images_below(root), key=lambda each: each.name)
    names = [each.name for each in found]
    classes: int | None = None
    if of_labels := [name for name in os.listdir(root) if name.lower() == DATASET_JSON]:
        entries = list(labelled(((each.name, each.odd) for each in found), _labels(root / max(of_labels))))
        names = [entry.name for entry in entries]
    else:
        folders = sorted({name.partition("/")[0] for name in names if "/" in name})
        ids = {name: number for number, name in enumerate(folders)}
        classes = len(folders) or None
        found.sort(key=_below_its_class)
        names = [each.name for each in found]
        entries = [_by_folder(each, ids) for each in found]
    identity: list[Any] = ["folder", vars(rules), [(each.size, each.changed) for each in found]]
    reader = FolderReader(root, names, rules)
    return listing_of(entries, reader, peak=rules.peak, num_classes=classes, identity=identity, rules=rules)


def _below_its_class(found: _Found) -> tuple[str, str]:
    folder, slash, below = found.name.partition("/")
    return (below, folder) if slash else (folder, "")


def _by_folder(found: _Found, ids: dict[str, int]) -> Entry:
    label = ids.get(found.name.partition("/")[0]) if "/" in found.name else None
    odd = found.odd
    if odd is None and ids and label is None:
        odd = "lies beside the folders of the classes, in none of them"
    return Entry(found.name, label, odd)


def _labels(path: Path) -> dict[str, int | str] | None:
    where = f"data.path {path.parent}: {path.name}"
    try:
        if not path.is_file():
            raise UserError(f"{where} is not a regular file")
        return labels_of(path.read_bytes())
    except OSError as error:
        raise UserError(f"{where} cannot be read ({reason_of(error)})") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where} {error}") from None


def _images_below(root: Path) -> Iterator[_Found]:
    """What looks like an image by its name. Links to folders are followed, but none into a folder it lies in."""
    pending = [("", frozenset[tuple[int, int]]())]
    while pending:
        folder, above = pending.pop()
        try:
            status = os.stat(root / folder)
            inside = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            refuse_passing(error, root / folder)
            yield _Found(folder, 0, 0, f"cannot be listed: {reason_of(error)}")
            continue
        place = (status.st_dev, status.st_ino)
        if place in above:
            continue
        for entry in inside:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            try:
                status = entry.stat()
            except OSError as error:
                if entry.name.lower().endswith(SUFFIXES):
                    refuse_passing(error, root / name)
                    yield _Found(name, 0, 0, f"cannot be read: {reason_of(error)}")
                continue
            if stat.S_ISDIR(status.st_mode):
                pending.append((name, above | {place}))
            elif entry.name.lower().endswith(SUFFIXES):
                odd = None if stat.S_ISREG(status.st_mode) else "is not a regular file"
                yield _Found(name, status.st_size, status.st_mtime_ns, odd)
