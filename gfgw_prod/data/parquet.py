"""Source ``parquet``: files as on the Hugging Face hub, a column of images ``{bytes, path}`` and one of class ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfgw_prod.data.images import InvalidImageError, Row, Rules, raise_if_temporary
from gfgw_prod.data.listing import Entry, Listing, file_state, find_files, make_listing
from gfgw_prod.process.exit_codes import UserError, one_line

BATCH_ROWS = 16  # read at once: Arrow cannot read 2 GiB of structs in one piece, as a whole row group may be


@dataclass
class ParquetReader:
    """Reads images by file, row group and row. Each process keeps the row group that it read last."""

    files: Sequence[Path]
    positions: Sequence[tuple[int, int, int]]  # number of the file, row group, row in the group, by item
    column: str
    rules: Rules
    _group: tuple[int, int] = (-1, -1)
    _images: Any = None  # encoded, of that row group; or why it cannot be read

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_group": (-1, -1), "_images": None}

    def row(self, item: int) -> Row:
        number, group, row = self.positions[item]
        if self._group != (number, group):
            self._images = None  # free the last row group first
            try:
                self._images = _read_images(self.files[number], group, self.column)
            except Exception as error:  # Arrow raises errors of many kinds
                raise_if_temporary(error, self.files[number])
                self._images = f"cannot be read: {one_line(error, 300)}"
            self._group = (number, group)
        if isinstance(self._images, str):
            raise InvalidImageError(self._images)
        content = self._images[row].as_py() if row < len(self._images) else None
        if content is None:
            raise InvalidImageError("holds no bytes of an image")
        return self.rules.decode(content)


def list_parquet(path: Path, rules: Rules, image_column: str, label_column: str | None) -> Listing:
    """List all rows of a file, or of every ``.parquet`` file in a directory, sorted by file name.

    A file that cannot be read, or lacks a column, is one invalid item.

    Raises:
        UserError: if there is no file, one cannot be read now, or the label column holds only nulls.
    """
    files = find_files(path, ".parquet", "parquet")
    entries: list[Entry] = []
    positions: list[tuple[int, int, int]] = []
    declared: set[tuple[str, ...]] = set()
    for number, file in enumerate(files):
        try:
            found = list(_entries(file, image_column, label_column, declared))
        except Exception as error:  # as above
            raise_if_temporary(error, file)
            why = str(error) if type(error) is ValueError else f"cannot be read: {one_line(error, 300)}"
            found = [(Entry(file.name, None, why), (-1, -1))]
        entries += [entry for entry, _ in found]
        positions += [(number, group, row) for _, (group, row) in found]
    valid = [entry for entry in entries if entry.invalid is None]
    if label_column is not None and valid and all(entry.label is None for entry in valid):
        problem = f"data.label_column {label_column} holds no class ids, nulls alone"
        raise UserError(f"data.path {path}: {problem}; set data.label_column null if the images have no classes")
    identity: list[Any] = ["parquet", vars(rules), image_column, label_column, [file_state(file) for file in files]]
    reader = ParquetReader(files, positions, image_column, rules)
    class_names = max(declared, key=lambda names: (len(names), names), default=())
    return make_listing(
        entries,
        reader,
        peak=rules.peak,
        num_classes=len(class_names) or None,
        identity=identity,
        rules=rules,
        class_names=class_names,
    )


def _entries(
    path: Path, image_column: str, label_column: str | None, declared: set[tuple[str, ...]]
) -> Iterator[tuple[Entry, tuple[int, int]]]:
    """Entries with their row group and row; ``ValueError`` with the reason if a column is missing or of a wrong type.

    Adds the names of the classes that the metadata state to ``declared``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        for name, setting in ((image_column, "data.image_column"), (label_column, "data.label_column")):
            if name is not None and schema.names.count(name) != 1:
                raise ValueError(f"has no column {name} ({setting}), but {', '.join(schema.names)[:200]}")
        kind = schema.field(image_column).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            found = f"has a column {image_column} of {str(kind)[:100]}"
            raise ValueError(f"{found}, which should be {{bytes, path}} or binary")
        if label_column is not None and not pa.types.is_integer(schema.field(label_column).type):
            raise ValueError(f"has a column {label_column} of {schema.field(label_column).type}, not of class ids")
        if label_column is not None and (names := _class_names(schema.metadata, label_column)):
            declared.add(names)
        for group in range(file.num_row_groups):
            labels: list[int | None] = [None] * file.metadata.row_group(group).num_rows
            if label_column is not None:
                labels = file.read_row_group(group, columns=[label_column]).column(0).to_pylist()
            for row, label in enumerate(labels):
                yield Entry(f"{path.name}:{group}:{row}", label), (group, row)


def _read_images(path: Path, group: int, column: str) -> Any:
    """The encoded images of a row group, as an Arrow array, from a column of bytes or of structs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = []
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=[column]):
            images = batch.column(0)
            if pa.types.is_struct(images.type):
                images = images.flatten()[images.type.get_field_index("bytes")]  # null where the struct is
            arrays.append(images)
    return pa.chunked_array(arrays)


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """The names of the classes that the hub's metadata state for a column, if any."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[column]["names"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
