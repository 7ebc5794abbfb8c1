"""Source ``zip``: archives in the format of EDM's ``dataset_tool``, images and a ``dataset.json`` with class ids."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gfgw_prod.data.dataset_json import is_dataset_json, read_labels
from gfgw_prod.data.images import MAX_BYTES, SUFFIXES, InvalidImageError, Row, Rules, raise_if_temporary
from gfgw_prod.data.listing import Entry, Listing, file_state, find_files, is_hidden, make_listing, note_of_others
from gfgw_prod.process.exit_codes import UserError, one_line


@dataclass
class ZipReader:
    """Reads members of archives. Each process opens an archive when it first reads from it."""

    archives: Sequence[Path]
    members: Sequence[tuple[int, str]]  # number of the archive and name, by item
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
                content = file.read(MAX_BYTES + 1)
        except Exception as error:  # zipfile, zlib and struct raise errors of many kinds on damaged bytes
            raise_if_temporary(error, f"{self.archives[number]}:{name}")
            raise InvalidImageError(f"cannot be unpacked: {one_line(error, 300)}") from None
        return self.rules.decode(content)


def list_archives(path: Path, rules: Rules) -> Listing:
    """List all images of an archive, or of every ``.zip`` file in a directory, sorted by name.

    An archive that cannot be read, or whose ``dataset.json`` is damaged, is one invalid item.

    Raises:
        UserError: if there is no archive, or one cannot be read now.
    """
    archives = find_files(path, ".zip", "zip")
    entries: list[Entry] = []
    members: list[tuple[int, str]] = []
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    opened: dict[int, zipfile.ZipFile] = {}
    for number, archive in enumerate(archives):
        prefix = f"{archive.name}:" if path != archive else ""
        try:
            opened[number] = zipfile.ZipFile(archive)
            names, invalid, others = _members(opened[number])
            labels = read_labels(names, partial(_read, opened[number], invalid))
            images = ((name, invalid.get(name)) for name in names if not is_dataset_json(name))
            found = list(labels.entries(images, prefix))
            notes += tuple(prefix + note for note in labels.notes + note_of_others(others))
            class_names = class_names or labels.class_names
        except UserError:
            raise
        except (ValueError, OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile) as error:
            raise_if_temporary(error, archive)
            why = str(error) if type(error) is ValueError else f"cannot be read: {one_line(error, 300)}"
            found = [Entry(archive.name, None, why)]
        entries += found
        members += [(number, entry.name.removeprefix(prefix)) for entry in found]
    identity: list[Any] = ["zip", vars(rules), [file_state(archive) for archive in archives]]
    reader = ZipReader(archives, members, rules, opened)
    return make_listing(
        entries,
        reader,
        peak=rules.peak,
        num_classes=None,
        identity=identity,
        rules=rules,
        notes=notes,
        class_names=class_names,
    )


def _members(file: zipfile.ZipFile) -> tuple[list[str], dict[str, str], list[str]]:
    """Images and ``dataset.json`` files of an archive by name, why some cannot be used, and the other files."""
    names: set[str] = set()
    others: list[str] = []
    invalid: dict[str, str] = {}
    for info in file.infolist():
        name = info.filename
        if info.is_dir() or any(map(is_hidden, name.split("/"))):
            continue
        if not name.lower().endswith(SUFFIXES) and not is_dataset_json(name):
            others.append(name)
            continue
        if name in names:
            invalid[name] = "stands in the archive twice"
        elif info.file_size > MAX_BYTES:
            invalid[name] = f"is larger than {MAX_BYTES >> 20} MiB"
        names.add(name)
    return sorted(names), invalid, others


def _read(file: zipfile.ZipFile, invalid: dict[str, str], name: str) -> bytes:
    """The content of a member; ``ValueError`` with the reason if it cannot be read."""
    if name in invalid:
        raise ValueError(invalid[name])
    try:
        return file.read(name)
    except Exception as error:  # as above
        raise_if_temporary(error, f"{file.filename}:{name}")
        raise ValueError(f"cannot be unpacked: {one_line(error, 300)}") from None
