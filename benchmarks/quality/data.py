"""The data sets of the comparison, as tables."""

from __future__ import annotations

from functools import partial

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


TABLES = {"digits": digits, "photos": photos, "photos-halved": partial(photos, halved=True)}
