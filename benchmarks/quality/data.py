"""The data sets of the comparison, as tables."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from sklearn.datasets import load_sample_images

from gfgw_prod.data.sources import Table, load_table
from gfgw_prod.settings.config import DataSettings

SIDE, STRIDE = 32, 16  # of patches, pixels
CLASSES = 2  # photographs


def digits() -> Table:
    """1,797 handwritten digits, ``(1, 8, 8)``, ten classes."""
    return load_table(DataSettings(source="digits"))


def photos(*, halved: bool = False) -> Table:
    """1,950 half-overlapping patches of two photographs, ``(3, 32, 32)``, a class each.

    ``halved``: averaged to ``(3, 16, 16)``.
    """
    patches, labels = [], []
    for label, photo in enumerate(load_sample_images().images):
        windows = np.lib.stride_tricks.sliding_window_view(photo, (SIDE, SIDE), axis=(0, 1))[::STRIDE, ::STRIDE]
        found = torch.from_numpy(windows.reshape(-1, 3, SIDE, SIDE).copy())
        if halved:
            found = torch.nn.functional.avg_pool2d(found.float(), 2).round().to(torch.uint8)
        patches.append(found)
        labels.append(torch.full((len(found),), label))
    return Table(torch.cat(patches), torch.cat(labels), peak=255, num_classes=CLASSES)


TABLES = {"digits": digits, "photos": photos, "photos-halved": partial(photos, halved=True)}
