"""Parquet files as the Hugging Face hub has them: a column of encoded images, ``{bytes, path}``, and one of labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gfgw_prod.data.archive import files_of, stamp
from gfgw_prod.data.images import MOST_BYTES, OddImageError, Row, Rules, refuse_passing
from gfgw_prod.data.listing import Entry, Listing, listing_of
from gfgw_prod.process.exit_codes import UserError, one_line


@dataclass
class ParquetReader:
    """Reads images by file, row group and row. A process keeps the row group that it read last.

    Attributes:
        places: (number of the file, row group, row in it) by item.
    """

    files: Sequence[Path]
    places: Sequence[tuple[int, int, int]]
    column: str
    rules: Rules
    _group: tuple[int, int] = (-1, -1)
    _images: Any = field(default=None)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_group": (-1, -1), "_images": None}

    def row(self, item: int) -> Row:
        import pyarrow.parquet as pq

        number, group, row = self.places[item]
        if self._group != (number, group):
            try:
                with pq.ParquetFile(self.files[number], page_checksum_verification=True) as file:
                    self._images = _encoded(file.read_row_group(group, columns=[self.column]).column(0))
            except Exception as error:  # Arrow raises errors of many kinds
                refuse_passing(error, self.files[number])
                self._images = f"cannot be read: {one_line(error, 300)}"
            self._group = (number, group)
        if isinstance(self._images, str):
            raise OddImageError(self._images)
        content = self._images[row].as_py() if row < len(self._images) else None
        if content is None:
            raise OddImageError("holds no bytes of an image")
        if len(content) > MOST_BYTES:
            raise OddImageError(f"is larger than {MOST_BYTES >> 20} MiB")
        return self.rules.decode(content)


def list_parquet(path: Path, rules: Rules, image_column: str, label_column: str | None) -> Listing:
    """All rows of a file, or of every ``.parquet`` file in a directory, sorted by name.

    A file that cannot be read, or lacks a column, is one odd item.

    Raises:
        UserError: if there is no file, one cannot be read now, or the column of labels holds none.
    """
    files = files_of(path, ".parquet", "parquet")
    entries: list[Entry] = []
    places: list[tuple[int, int, int]] = []
    declared: set[int] = set()
    for number, file in enumerate(files):
        try:
            found = list(_entries(file, image_column, label_column, declared))
        except Exception as error:  # as above
            refuse_passing(error, file)
            why = str(error) if type(error) is ValueError else f"cannot be read: {one_line(error, 300)}"
            found = [(Entry(file.name, None, why), (-1, -1))]
        entries += [entry for entry, _ in found]
        places += [(number, group, row) for _, (group, row) in found]
    taken = [entry for entry in entries if entry.odd is None]
    if label_column is not None and taken and all(entry.label is None for entry in taken):
        raise UserError(
            f"data.path {path}: data.label_column {label_column} holds no class ids, nulls alone; set "
            "data.label_column null if the images have no classes"
        )
    identity: list[Any] = ["parquet", vars(rules), image_column, label_column, [stamp(file) for file in files]]
    reader = ParquetReader(files, places, image_column, rules)
    classes = max(declared) if declared else None
    return listing_of(entries, reader, peak=rules.peak, num_classes=classes, identity=identity, rules=rules)


def _entries(
    path: Path, image_column: str, label_column: str | None, declared: set[int]
) -> Iterator[tuple[Entry, tuple[int, int]]]:
    """Entries with their row group and row.

    Raises:
        ValueError: with the reason, if a column is missing or is of another kind.
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
            raise ValueError(
                f"has a column {image_column} of {str(kind)[:100]}, which should be {{bytes, path}} or binary"
            )
        if label_column is not None and not pa.types.is_integer(schema.field(label_column).type):
            raise ValueError(f"has a column {label_column} of {schema.field(label_column).type}, not of class ids")
        if label_column is not None and (names := _class_names(schema.metadata, label_column)):
            declared.add(names)
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            labels: list[int | None] = [None] * count
            if label_column is not None:
                labels = file.read_row_group(group, columns=[label_column]).column(0).to_pylist()
            for row in range(count):
                yield Entry(f"{path.name}:{group}:{row}", labels[row]), (group, row)


def _encoded(column: Any) -> Any:
    """The bytes of a column of images, plain or in structs."""
    import pyarrow as pa

    if not pa.types.is_struct(column.type):
        return column
    return column.flatten()[column.type.get_field_index("bytes")]


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> int:
    """How many classes the hub's own metadata names for a column; 0 if none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return len(features[column]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return 0
