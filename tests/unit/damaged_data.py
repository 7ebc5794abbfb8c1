"""Three hundred damaged images, archives, parquet files and label files, each beside good data.

Each is damaged deterministically. None may be accepted, and none may keep the good data out.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests import image_files

GOOD = 4
IMAGES = np.random.default_rng(0).integers(0, 256, (GOOD, 3, 16, 16), dtype=np.uint8)
LABELS = [0, 1, 2, 1]
PNG = image_files.png(IMAGES[0])


@dataclass(frozen=True)
class Case:
    """Adds a damaged file to a directory with good data of the source.

    Args:
        name: the name that a message must contain.
    """

    source: str
    name: str
    add: Callable[[Path], None]
    what: str


def cases() -> list[Case]:
    """All cases."""
    return [*_images(), *_archives(), *_parquet_files(), *_labels()]


def start(source: str, place: Path) -> None:
    """Write good data of a source."""
    if source == "folder":
        image_files.write_class_folders(place, IMAGES, LABELS)
    elif source == "zip":
        place.mkdir()
        image_files.write_zip(place / "good.zip", IMAGES, LABELS)
    else:
        image_files.write_parquet(place, IMAGES, LABELS)


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    """An image file written by Pillow."""
    written = io.BytesIO()
    (image or Image.fromarray(IMAGES[1].transpose(1, 2, 0))).save(written, format=kind, **options)
    return written.getvalue()


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda place: (place / name).write_bytes(content) and None


def _flipped(content: bytes, position: int, bits: int) -> bytes:
    """The content with some bits of one byte flipped."""
    return content[:position] + bytes([content[position] ^ bits]) + content[position + 1 :]


def _images() -> Iterator[Case]:
    def case(what: str, content: bytes, suffix: str = "png") -> Case:
        name = f"class-1/odd.{suffix}"
        return Case("folder", name, _write(name, content), what)

    for kind, suffix in (
        ("PNG", "png"),
        ("JPEG", "jpg"),
        ("WEBP", "webp"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
        ("PPM", "ppm"),
    ):
        whole = encoded(kind)
        for share in (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.85):
            yield case(f"{kind} cut at {share:.0%}", whole[: int(len(whole) * share)], suffix)
        yield case(f"{kind} of another size", encoded(kind, Image.new("RGB", (16, 17))), suffix)
        yield case(f"{kind} with zeros in front", bytes(64) + whole, suffix)
    for position in range(8, len(PNG) - 16, max(len(PNG) // 36, 1)):
        yield case(f"PNG with a bit flipped at {position}", _flipped(PNG, position, 0x40))
    for text in (
        b"hello",
        b"<html>404</html>",
        b"\x89PNG",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"\x00" * 5000,
        b"GIF89a",
        b"\n",
    ):
        yield case(f"text {text[:8]!r}", text)
    yield case("16 bits", encoded("PNG", Image.fromarray(np.full((16, 16), 60_000, dtype=np.uint16))))
    yield case("floats", encoded("TIFF", Image.fromarray(np.ones((16, 16), dtype=np.float32))), "tif")
    for channels in (2, 3, 4):
        yield case(f"16 bits, {channels} channels", image_files.png_of_16_bits(16, channels))
    yield case("16 bits, PPM", b"P6 16 16 65535\n" + bytes(2 * 3 * 256), "ppm")
    yield case("10 bits, PPM", b"P3 16 16 1023\n" + b"1000 " * 768, "ppm")
    yield case("16 bits, TIFF", image_files.tiff_of_16_bits(16), "tif")
    clear = np.full((16, 16, 4), 128, dtype=np.uint8)
    yield case("transparent", encoded("PNG", Image.fromarray(clear)))
    yield case("transparent colour", encoded("PNG", Image.new("P", (16, 16)), transparency=0))
    yield case("transparent colour of three", encoded("PNG", Image.new("RGB", (16, 16)), transparency=(0, 0, 0)))
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for kind, suffix in (("PNG", "png"), ("TIFF", "tif")):
        yield case(f"animated {kind}", encoded(kind, frames[0], save_all=True, append_images=frames[1:]), suffix)
    for sides in ((0, 16), (16, 0), (60_000, 60_000), (2**31 - 1, 1), (2**32 - 1, 2**32 - 1)):
        yield case(f"PNG that claims {sides}", _claiming(sides))
    name = "class-1/odd.png"
    yield Case("folder", name, lambda place: os.mkfifo(place / name), "fifo")
    yield Case("folder", name, lambda place: (place / name).symlink_to("nowhere"), "broken link")
    yield Case("folder", name, lambda place: (place / name).symlink_to("odd.png"), "link to itself")
    yield Case("folder", "odd.png", _write("odd.png", PNG), "beside the classes")
    broken = "class-1/two\\nlines.png"
    yield Case("folder", broken, _write("class-1/two\nlines.png", b"x"), "line break in the name")
    raw = os.fsdecode(b"class-1/\xff.png")
    yield Case("folder", "class-1/\\udcff.png", _write(raw, b"x"), "name that is no text")


def _claiming(sides: tuple[int, int]) -> bytes:
    header = struct.pack(">II", *sides) + PNG[24:29]
    return PNG[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + PNG[33:]


def _archive(members: dict[str, bytes], **options: Any) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return written.getvalue()


def _archives() -> Iterator[Case]:
    whole = _archive({"one.png": PNG, "dataset.json": json.dumps({"labels": [["one.png", 1]]}).encode()})
    central = whole.index(b"PK\x01\x02")

    def case(what: str, content: bytes, name: str = "odd.zip") -> Case:
        return Case("zip", name, _write("odd.zip", content), what)

    for number in range(40):
        yield case(f"cut at {number} of 40", whole[: len(whole) * number // 40])
    for position in range(60, 30 + len(PNG), len(PNG) // 16):  # of a member that is stored as it is
        yield case(f"bit flipped in an image at {position}", _flipped(whole, position, 0x10), "odd.zip:one.png")
    for what, position in (("central directory", central), ("entry", 0), ("end", len(whole) - 22)):
        yield case(f"no signature of the {what}", _flipped(whole, position, 0x01), "odd.zip")
    for text in (b"", b"PK", b"PK\x05\x06", b"\x1f\x8b\x08", b"{}", bytes(100_000), PNG):
        yield case(f"no archive: {text[:8]!r}", text)
    odd = {
        "empty": b"",
        "text": b"hello",
        "cut": PNG[:200],
        "large": encoded("PNG", Image.new("RGB", (99, 99))),
        "grey of 16 bits": encoded("PNG", Image.fromarray(np.ones((16, 16), dtype=np.uint16))),
    }
    for what, content in odd.items():
        for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
            members = {"a/x.png": content, "dataset.json": b'{"labels": [["a/x.png", 1]]}'}
            yield case(
                f"{what}, compression {compression}", _archive(members, compression=compression), "odd.zip:a/x.png"
            )
    for flag, what in ((0x1, "encrypted"), (0x20, "patched")):
        marked = bytearray(whole)
        marked[central + 8] |= flag
        marked[6] |= flag
        yield case(what, bytes(marked), "odd.zip")
    unknown = bytearray(whole)
    unknown[central + 10] = unknown[8] = 77
    yield case("unknown compression", bytes(unknown), "odd.zip:one.png")


def _parquet(columns: dict[str, Any], **options: Any) -> bytes:
    written = io.BytesIO()
    pq.write_table(
        pa.table(columns),
        written,
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        **options,
    )
    return written.getvalue()


def _parquet_files() -> Iterator[Case]:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

    def column(*contents: bytes | None) -> pa.Array:
        return pa.array([{"bytes": each, "path": "x.png"} for each in contents], image)

    whole = _parquet({"image": column(PNG, PNG), "label": [1, 2]})

    def case(what: str, content: bytes, name: str = "uneven.parquet") -> Case:
        return Case("parquet", name, _write("uneven.parquet", content), what)

    for number in range(30):
        yield case(f"cut at {number} of 30", whole[: len(whole) * number // 30])
    for position in range(100, 100 + len(PNG), len(PNG) // 12):
        yield case(f"bit flipped in a page at {position}", _flipped(whole, position, 0x04))
    for text in (
        b"",
        b"PAR1",
        b"PAR1PAR1",
        b"PAR1" + bytes(1000) + b"PAR1",
        b"a,b\n1,2\n",
        PNG,
        whole[::-1],
        whole[4:],
    ):
        yield case(f"no parquet: {text[:8]!r}", text)
    for what, columns in {
        "no image column": {"picture": column(PNG), "label": [1]},
        "no label column": {"image": column(PNG), "class": [1]},
        "no columns": {},
        "image paths alone": {"image": ["x.png"], "label": [1]},
        "numbers for images": {"image": [1.5], "label": [1]},
        "struct without bytes": {"image": pa.array([{"path": "x"}]), "label": [1]},
        "text for labels": {"image": column(PNG), "label": ["cat"]},
        "floats for labels": {"image": column(PNG), "label": [1.0]},
        "lists for labels": {"image": column(PNG), "label": [[1]]},
    }.items():
        yield case(what, _parquet(columns))
    for what, content in {
        "null": None,
        "empty": b"",
        "text": b"hello",
        "cut": PNG[:300],
        "large": encoded("PNG", Image.new("RGB", (99, 99))),
    }.items():
        yield case(f"image is {what}", _parquet({"image": column(content), "label": [1]}), "uneven.parquet:0:0")
        plain = pa.array([content], pa.binary())
        yield case(f"binary image is {what}", _parquet({"image": plain, "label": [1]}), "uneven.parquet:0:0")
    for label in (None, -1, -(2**40), 100_000, 2**62):
        labels = pa.array([label], pa.int64())
        yield case(f"label {label}", _parquet({"image": column(PNG), "label": labels}), "uneven.parquet:0:0")
    yield case("null struct", _parquet({"image": pa.array([None], image), "label": [1]}), "uneven.parquet:0:0")


def _labels() -> Iterator[Case]:
    def archive(labels: bytes) -> bytes:
        return _archive({"one.png": PNG, "dataset.json": labels})

    good = b'{"labels": [["one.png", 1]]}'
    whole_file = [
        *(good[:length] for length in range(0, len(good) - 1, 3)),
        *(b"\xff\xfe", b"\x00", b"[]", b"5", b"null", b'"labels"', b"NaN", b"{" * 100_000, b"[" * 100_000),
        *(b'{"labels": 5}', b'{"labels": "x"}', b'{"labels": {}}', b'{"labels": {"one.png": 1}}', b'{"labels": true}'),
        *(b'{"labels": [1]}', b'{"labels": [[]]}', b'{"labels": [["one.png"]]}', b'{"labels": [["one.png", 1, 2]]}'),
        *(b'{"labels": [[1, "one.png"]]}', b'{"labels": [[null, 1]]}', b'{"labels": ["one.png", 1]}'),
        b'{"labels": [["one.png", ' + b"9" * 5000 + b"]]}",
    ]
    for labels in whole_file:
        yield Case("zip", "odd.zip", _write("odd.zip", archive(labels)), f"labels {labels[:40]!r}")
    for label in (
        b"null",
        b"-1",
        b"100000",
        b"1.5",
        b'"1"',
        b"[0, 1]",
        b"{}",
        b"true",
        b"9" * 400,
        b"1e3",
        b"NaN",
        b"-0.0",
    ):
        labels = b'{"labels": [["one.png", %s]]}' % label
        yield Case("zip", "odd.zip:one.png", _write("odd.zip", archive(labels)), f"label {label[:20]!r}")
    for what, labels, name in (
        ("of no image", b'{"labels": [["one.png", 1], ["gone.png", 1]]}', "odd.zip:gone.png"),
        ("twice", b'{"labels": [["one.png", 1], ["one.png", 2]]}', "odd.zip:one.png"),
        ("of another alone", b'{"labels": [["two.png", 1]]}', "odd.zip:one.png"),
        ("none at all", b'{"labels": []}', "odd.zip:one.png"),
    ):
        yield Case("zip", name, _write("odd.zip", archive(labels)), f"labels {what}")
