"""Writes arrays of images as a folder, an EDM zip archive, or parquet files as on the Hugging Face hub."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image


def png(image: NDArray[np.uint8]) -> bytes:
    """A row ``(c, h, w)`` as a PNG file."""
    written = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(written, format="PNG")
    return written.getvalue()


def png_of_16_bits(side: int, channels: int) -> bytes:
    """A square, opaque PNG file of 16 bits with 2 (grey and alpha), 3 or 4 channels. Pillow cannot write one."""
    line = b"\0" + b"\xff\xff" * channels * side
    header = struct.pack(">IIBBBBB", side, side, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    written = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(line * side)), (b"IEND", b"")):
        checksum = zlib.crc32(kind + content)
        written += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
    return written


def tiff_of_16_bits(side: int) -> bytes:
    """A square TIFF file of 16 bits with three channels. Pillow cannot write one."""
    long, short, pixels = 4, 3, bytes(2 * 3 * side * side)
    tags = [(256, short, 1, side), (257, short, 1, side), (258, short, 3, 8 + 6 + 9 * 12), (259, short, 1, 1)]
    tags += [(262, short, 1, 2), (273, long, 1, 8 + 6 + 9 * 12 + 6), (277, short, 1, 3)]
    tags += [(278, short, 1, side), (279, long, 1, len(pixels))]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    bits = struct.pack("<3H", 16, 16, 16)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + directory + bytes(4) + bits + pixels


def name_of(row: int) -> str:
    """The name of an image in the format of EDM's tool."""
    return f"{row // 1000:05d}/img{row:08d}.png"


def dataset_json(labels: Sequence[int]) -> bytes:
    """The content of EDM's ``dataset.json``."""
    return json.dumps({"labels": [[name_of(row), int(label)] for row, label in enumerate(labels)]}).encode()


def write_folder(place: Path, images: NDArray[np.uint8], labels: Sequence[int]) -> Path:
    """Write a folder as EDM's tool does: numbered files, and ``dataset.json``."""
    for row, image in enumerate(images):
        file = place / name_of(row)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
    (place / "dataset.json").write_bytes(dataset_json(labels))
    return place


def write_class_folders(place: Path, images: NDArray[np.uint8], labels: Sequence[int]) -> Path:
    """Write a folder for each class, named ``class-0`` and so on."""
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = place / f"class-{label}" / f"{row:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
    return place


def write_zip(place: Path, images: NDArray[np.uint8], labels: Sequence[int]) -> Path:
    """Write an archive as EDM's tool does."""
    with zipfile.ZipFile(place, "w") as archive:
        for row, image in enumerate(images):
            archive.writestr(name_of(row), png(image))
        archive.writestr("dataset.json", dataset_json(labels))
    return place


def write_parquet(
    place: Path, images: NDArray[np.uint8], labels: Sequence[int], *, group_rows: int = 100, files: int = 1
) -> Path:
    """Write a directory of parquet files as on the hub."""
    place.mkdir(parents=True)
    for number, rows in enumerate(np.array_split(np.arange(len(images)), files)):
        column = [{"bytes": png(images[row]), "path": f"{row}.png"} for row in rows]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table(
            {"image": pa.array(column, kind), "label": pa.array([int(labels[row]) for row in rows], pa.int64())}
        )
        names = [str(each) for each in range(int(max(labels)) + 1)]
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, place / f"train-{number:05d}.parquet", row_group_size=group_rows)
    return place
