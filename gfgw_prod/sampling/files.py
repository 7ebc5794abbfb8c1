"""Writers of sample files: one PNG each, or one grid, batch by batch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gfgw_prod.data.dataset_json import DATASET_JSON, parse_labels
from gfgw_prod.process.durable import write_whole
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.sampling import pictures

PICTURE = r"[0-9]{6,}\.png"


class ImageWriter(Protocol):
    """Writes images in order. A picture is written completely or not at all."""

    def add(self, first: int, levels: Tensor) -> None:
        """Write images ``first`` to ``first + n``, uint8 ``(n, c, h, w)``."""

    def close(self) -> str:
        """Complete the files; return a line about them."""


class Pngs:
    """``000000.png`` and so on, with class ids in ``dataset.json``: a data set in the format of EDM's tools.

    ``dataset.json`` is written last; an earlier command's is removed first.

    Args:
        labels: class ids ``(count,)``, if any.
        class_names: by class id, if the classes have names.

    Raises:
        UserError: if ``out`` holds other pictures that would mix with these, or the labels of a data set.
    """

    def __init__(self, out: Path, count: int, labels: Tensor | None = None, class_names: Sequence[str] = ()):
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


class Grid:
    """All images in one ``grid.png``."""

    def __init__(self, out: Path, columns: int):
        self._path, self._columns = out / "grid.png", columns
        self._pieces: list[Tensor] = []

    def add(self, first: int, levels: Tensor) -> None:
        self._pieces.append(levels)

    def close(self) -> str:
        pictures.write_png(pictures.grid_of(torch.cat(self._pieces), self._columns), self._path)
        return str(self._path)
