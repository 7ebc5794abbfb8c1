"""Source ``folder``: a tree of image files. Classes are the folders at its top, or stand in a ``dataset.json``."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gfgw_prod.data.dataset_json import is_dataset_json, read_labels
from gfgw_prod.data.images import MAX_BYTES, SUFFIXES, InvalidImageError, Row, Rules, raise_if_temporary
from gfgw_prod.data.listing import Entry, Listing, is_hidden, make_listing, note_of_others
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
                content = file.read(MAX_BYTES + 1)
        except (OSError, MemoryError) as error:
            raise_if_temporary(error, self.root / self.names[item])
            raise InvalidImageError(f"cannot be read: {reason_of(error)}") from None
        return self.rules.decode(content)


class _File(NamedTuple):
    name: str  # relative, with slashes
    size: int = 0
    mtime_ns: int = 0
    invalid: str | None = None
    is_read: bool = True


def list_folder(directory: Path, rules: Rules) -> Listing:
    """List all images below ``directory``. Hidden files, system folders and other kinds of files are skipped.

    With a ``dataset.json``, images are sorted by name. Otherwise they are sorted by the name below the class folder,
    then by class, so images numbered across classes come in the order of their numbers.

    Raises:
        UserError: if there is no such directory, it cannot be read now, or its ``dataset.json`` is damaged.
    """
    if not os.path.isdir(directory):
        raise UserError(f"data.path {directory} is not a directory; data.source folder wants one with images in it")
    found = sorted(_files_below(directory), key=lambda file: file.name)
    others = [file.name for file in found if not file.is_read]
    found = [file for file in found if file.is_read]
    images = [file for file in found if not is_dataset_json(file.name)]
    try:
        labels = read_labels([file.name for file in found], lambda name: _read(directory / name))
    except ValueError as error:
        raise UserError(f"data.path {directory}: {error}") from None
    if not found:
        notes = "".join(f"; {note}" for note in note_of_others(others))
        raise UserError(f"data.path {directory}: no image there; names should end in {' '.join(SUFFIXES)}{notes}")
    folders: list[str] = []
    if labels.file is not None:
        entries = list(labels.entries((file.name, file.invalid) for file in images))
    else:
        folders = sorted({file.name.partition("/")[0] for file in images if "/" in file.name})
        ids = {name: number for number, name in enumerate(folders)}
        images.sort(key=_class_folder_last)
        entries = [_entry_by_folder(file, ids) for file in images]
    identity: list[Any] = ["folder", vars(rules), [(file.size, file.mtime_ns) for file in images]]
    reader = FolderReader(directory, [entry.name for entry in entries], rules)
    return make_listing(
        entries,
        reader,
        peak=rules.peak,
        num_classes=len(folders) or None,
        identity=identity,
        rules=rules,
        notes=labels.notes + note_of_others(others),
        class_names=folders or labels.class_names,
    )


def _class_folder_last(file: _File) -> tuple[str, str]:
    folder, slash, below = file.name.partition("/")
    return (below, folder) if slash else (folder, "")


def _entry_by_folder(file: _File, ids: dict[str, int]) -> Entry:
    label = ids.get(file.name.partition("/")[0]) if "/" in file.name else None
    beside = "lies beside the class folders, in none of them" if ids and label is None else None
    return Entry(file.name, label, file.invalid or beside)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ValueError("is not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({reason_of(error)})") from None


def _files_below(root: Path) -> Iterator[_File]:
    """All files but hidden ones. Links to folders are followed, but not into a parent."""
    pending = [("", frozenset[tuple[int, int]]())]  # folders and the inodes of their parents
    while pending:
        folder, parents = pending.pop()
        try:
            status = os.stat(root / folder)
            inside = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            raise_if_temporary(error, root / folder)
            yield _File(folder, invalid=f"cannot be listed: {reason_of(error)}")
            continue
        inode = (status.st_dev, status.st_ino)
        if inode in parents:
            continue
        for entry in inside:
            if is_hidden(entry.name):
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            if is_dataset_json(name):
                yield _File(name)
            is_image = entry.name.lower().endswith(SUFFIXES)
            try:
                status = entry.stat()
            except OSError as error:
                if is_image:
                    raise_if_temporary(error, root / name)
                    yield _File(name, invalid=f"cannot be read: {reason_of(error)}")
                continue
            if stat.S_ISDIR(status.st_mode):
                pending.append((name, parents | {inode}))
            elif is_image:
                invalid = None if stat.S_ISREG(status.st_mode) else "is not a regular file"
                yield _File(name, status.st_size, status.st_mtime_ns, invalid)
            elif not is_dataset_json(name):
                yield _File(name, is_read=False)
