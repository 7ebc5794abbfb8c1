"""The data sets of the comparison, as tables."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from gfgw_prod.data.sources import Table, load_table
from gfgw_prod.settings.config import DataSettings


def digits() -> Table:
    """1,797 handwritten digits, ``(1, 8, 8)``, ten classes."""
    return load_table(DataSettings(source="digits"))


def photos(*, halved: bool = False) -> Table:
    """1,950 half-overlapping patches of two photographs, ``(3, 32, 32)`` or, if ``halved``, averaged to 16x16."""
    table = load_table(DataSettings(source="photos"))
    assert isinstance(table.images, torch.Tensor)
    if not halved:
        return table
    images = torch.nn.functional.avg_pool2d(table.images.float(), 2).round().to(torch.uint8)
    return Table(images, table.labels, table.peak, table.num_classes)


def folder(place: str, side: int) -> Table:
    """Pictures of a directory as squares of ``side`` pixels, on white; grey if all are."""
    settings = DataSettings(source="folder", path=Path(place), image_size=side, background="white")
    table = load_table(settings)
    assert isinstance(table.images, torch.Tensor)
    if table.has_equal_channels():
        return Table(table.images[:, :1].contiguous(), table.labels, table.peak, table.num_classes)
    return table


def table_of(name: str) -> Table:
    """A data set by its name, or as ``DIR@SIDE``."""
    if name in TABLES:
        return TABLES[name]()
    place, _, side = name.rpartition("@")
    return folder(place, int(side))


TABLES = {"digits": digits, "photos": photos, "photos-halved": partial(photos, halved=True)}
