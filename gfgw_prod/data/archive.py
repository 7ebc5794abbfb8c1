"""Zip archives in the format of EDM's ``dataset_tool``: images, and ``dataset.json`` with their class ids."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gfgw_prod.data.images import MOST_BYTES, SUFFIXES, OddImageError, Row, Rules, refuse_passing
from gfgw_prod.data.listing import DATASET_JSON, Entry, Listing, labelled, labels_of, listing_of
from gfgw_prod.process.exit_codes import UserError, one_line, reason_of


@dataclass
class ZipReader:
    """Reads members of archives; each process opens an archive when it first reads from it.

    Attributes:
        members: (number of the archive, name) by item.
    """

    archives: Sequence[Path]
    members: Sequence[tuple[int, str]]
    rules: Rules
    _open: dict[int, zipfile.ZipFile] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}

    def row(self, item: int) -> Row:
        number, name = self.members[item]
        try:
            if number not in self._open:
                self._open[number] = zipfile.ZipFile(self.archives[number])
            with self._open[number].open(name) as file:
                content = file.read(MOST_BYTES + 1)
        except Exception as error:  # zipfile, zlib and struct raise what damaged bytes lead them to
            refuse_passing(error, f"{self.archives[number]}:{name}")
            raise OddImageError(f"cannot be unpacked: {one_line(error, 300)}") from None
        if len(content) > MOST_BYTES:
            raise OddImageError(f"is larger than {MOST_BYTES >> 20} MiB")
        return self.rules.decode(content)


def list_archives(path: Path, rules: Rules) -> Listing:
    """All images of an archive, or of every ``.zip`` file in a directory, sorted by name.

    An archive that cannot be read, or whose ``dataset.json`` is damaged, is one odd item.

    Raises:
        UserError: if there is no archive, or one cannot be read now.
    """
    archives = files_of(path, ".zip", "zip")
    entries: list[Entry] = []
    members: list[tuple[int, str]] = []
    opened: dict[int, zipfile.ZipFile] = {}
    for number, archive in enumerate(archives):
        shown = archive.name if path != archive else ""
        try:
            opened[number] = zipfile.ZipFile(archive)
            found = list(_entries(opened[number], f"{shown}:" if shown else ""))
        except UserError:
            raise
        except (ValueError, OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile) as error:
            refuse_passing(error, archive)
            why = str(error) if type(error) is ValueError else f"cannot be read: {one_line(error, 300)}"
            found = [(Entry(archive.name, None, why), "")]
        entries += [entry for entry, _ in found]
        members += [(number, name) for _, name in found]
    identity: list[Any] = ["zip", vars(rules), [stamp(archive) for archive in archives]]
    reader = ZipReader(archives, members, rules, opened)
    return listing_of(entries, reader, peak=rules.peak, num_classes=None, identity=identity, rules=rules)


def _entries(file: zipfile.ZipFile, before: str) -> Iterator[tuple[Entry, str]]:
    """Entries and members' names of an archive. A folder that holds all of it, as of ``zip -r``, is its root.

    Raises:
        ValueError: with the reason, if its labels are damaged.
    """
    sizes: dict[str, int] = {}
    odd: dict[str, str] = {}
    for info in file.infolist():
        name = info.filename
        hidden = name.rpartition("/")[2].startswith(".")
        if info.is_dir() or hidden or not (name.lower().endswith(SUFFIXES) or _is_labels(name)):
            continue
        if name in sizes:
            odd[name] = "stands in the archive twice"
        elif info.file_size > MOST_BYTES:
            odd[name] = f"is larger than {MOST_BYTES >> 20} MiB"
        sizes[name] = info.file_size
    labels, root = None, _root(sizes)
    found = [name for name in sizes if _is_labels(name) and "/" not in name.removeprefix(root)]
    if found:
        if len(found) > 1 or found[0] in odd:
            raise ValueError(f"{DATASET_JSON} {odd.get(found[0], 'stands in the archive twice')}")
        try:
            content = file.read(found[0])
        except Exception as error:  # as above
            refuse_passing(error, f"{file.filename}:{DATASET_JSON}")
            raise ValueError(f"{DATASET_JSON} cannot be unpacked: {one_line(error, 300)}") from None
        try:
            labels = labels_of(content)
        except ValueError as error:
            raise ValueError(f"{DATASET_JSON} {error}") from None
    images = sorted(name for name in sizes if not _is_labels(name))
    for entry in labelled(((name.removeprefix(root), odd.get(name)) for name in images), labels, before + root):
        yield entry, entry.name.removeprefix(before)


def _is_labels(name: str) -> bool:
    return name.rpartition("/")[2].lower() == DATASET_JSON


def _root(names: Collection[str]) -> str:
    """The only folder at the top of an archive, with its slash, if its labels lie there; else nothing."""
    tops = {name.partition("/")[0] + "/" for name in names}
    top = min(tops, default="")
    alone = len(tops) == 1 and any(name.lower() == f"{top}{DATASET_JSON}".lower() for name in names)
    return top if alone else ""


def files_of(path: Path, suffix: str, source: str) -> list[Path]:
    """The file at ``path``, or all with the suffix in the directory there, sorted by name.

    Raises:
        UserError: if there is none.
    """
    try:
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path) if name.endswith(suffix) and not name.startswith("."))
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


def stamp(file: Path) -> tuple[str, int, int]:
    """What changes when a file does: name, size and time of its last change."""
    status = file.stat()
    return file.name, status.st_size, status.st_mtime_ns
