"""Writers of sample files: one PNG each, one grid, or one npz, batch by batch."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from torch import Tensor

from gfgw_prod.data.dataset_json import DATASET_JSON, parse_labels
from gfgw_prod.process.durable import write_whole
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.sampling import pictures

Form = Literal["png", "grid", "npz"]
PICTURE = r"[0-9]{6,}\.png"


class ImageWriter(ABC):
    """Writes images in order."""

    @abstractmethod
    def add(self, first: int, levels: Tensor) -> None:
        """Write images ``first`` to ``first + n``, uint8 ``(n, c, h, w)``."""

    @abstractmethod
    def close(self) -> str:
        """Complete the files; return a line about them."""

    def discard(self) -> None:  # noqa: B027
        """Remove an incomplete file; pictures are written completely or not at all."""


def image_writer(
    form: Form,
    out: Path,
    count: int,
    labels: Tensor | None,
    shape: tuple[int, int, int],
    *,
    columns: int = 1,
    class_names: Sequence[str] = (),
) -> ImageWriter:
    """A writer of ``count`` images ``shape``, with class ids ``labels`` if any, to the directory ``out``.

    Args:
        columns: of a grid.
        class_names: by class id, if the classes have names.

    Raises:
        UserError: if ``out`` holds other pictures that would mix with these, or the labels of a data set.
    """
    if form == "png":
        return Pngs(out, count, labels, class_names)
    if form == "grid":
        return Grid(out, columns)
    return Npz(out, count, labels, shape)


class Pngs(ImageWriter):
    """``000000.png`` and so on, with class ids in ``dataset.json``: a data set in the format of EDM's tools.

    Names of classes stand there too, under a key of their own.
    ``dataset.json`` is written last; an earlier command's is removed first.
    """

    def __init__(self, out: Path, count: int, labels: Tensor | None, class_names: Sequence[str]):
        self._out, self._count, self._labels, self._class_names = out, count, labels, class_names
        self._digits = max(6, len(str(count - 1)))  # names sort in the order of numbers
        for name in sorted(os.listdir(out)):
            if re.fullmatch(PICTURE, name):
                number = int(name.removesuffix(".png"))
                if number >= count or name != self._name(number):
                    mixed = f"{name}, which is none of the {count:,} images to be written and would mix with them"
                    raise UserError(f"--out {out} holds {mixed}; name another directory")
        if not _is_of_samples(out / DATASET_JSON):
            lost = f"the {DATASET_JSON} of another data set, which would be lost"
            raise UserError(f"--out {out} holds {lost}; name another directory")
        (out / DATASET_JSON).unlink(missing_ok=True)

    def add(self, first: int, levels: Tensor) -> None:
        for number, picture in enumerate(levels.expand(-1, 3, -1, -1), start=first):
            pictures.write_png(picture, self._out / self._name(number))

    def close(self) -> str:
        labels = None
        if self._labels is not None:
            labels = [[self._name(number), label] for number, label in enumerate(self._labels.tolist())]
        content: dict[str, object] = {"labels": labels}
        if self._class_names:
            content["class_names"] = list(self._class_names)
        write_whole(self._out / DATASET_JSON, json.dumps(content).encode())
        return f"{self._count} images in {self._out}"

    def _name(self, number: int) -> str:
        return f"{number:0{self._digits}d}.png"


def _is_of_samples(path: Path) -> bool:
    """Whether a ``dataset.json`` is missing, or names nothing but samples."""
    try:
        labels, _ = parse_labels(path.read_bytes())
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return all(re.fullmatch(PICTURE, name) for name in labels or ())


class Grid(ImageWriter):
    """All images in one ``grid.png``."""

    def __init__(self, out: Path, columns: int):
        self._path, self._columns = out / "grid.png", columns
        self._pieces: list[Tensor] = []

    def add(self, first: int, levels: Tensor) -> None:
        self._pieces.append(levels)

    def close(self) -> str:
        pictures.write_png(pictures.grid_of(torch.cat(self._pieces), self._columns), self._path)
        return str(self._path)


class Npz(ImageWriter):
    """``samples.npz``: images ``arr_0`` ``(n, h, w, c)``, uint8, and class ids, if any, ``arr_1`` ``(n,)``, int64.

    This is the format of evaluation suites (Dhariwal and Nichol 2021). Equal images give equal bytes.
    """

    def __init__(self, out: Path, count: int, labels: Tensor | None, shape: tuple[int, int, int]):
        self._path, self._partial = out / "samples.npz", out / ".samples.npz.partial"
        self._archive = zipfile.ZipFile(self._partial, "w")
        self._stream: IO[bytes] = io.BytesIO()
        channels, height, width = shape
        try:
            if labels is not None:
                ids = labels.numpy()
                self._member("arr_1.npy", ids.dtype, ids.shape)
                self._stream.write(ids.tobytes())
                self._stream.close()
            self._member("arr_0.npy", np.dtype(np.uint8), (count, height, width, channels))
        except BaseException:
            self.discard()
            raise

    def add(self, first: int, levels: Tensor) -> None:
        self._stream.write(levels.permute(0, 2, 3, 1).contiguous().numpy().tobytes())

    def close(self) -> str:
        self._stream.close()
        self._archive.close()
        self._partial.replace(self._path)
        return str(self._path)

    def discard(self) -> None:
        for each in (self._stream, self._archive):
            with suppress(OSError):  # closing writes buffers
                each.close()
        self._partial.unlink(missing_ok=True)

    def _member(self, name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
        entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # savez would record the time
        self._stream = self._archive.open(entry, "w", force_zip64=True)
        described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, described)
