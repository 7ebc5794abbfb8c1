"""The two data sets of the comparison, as tables."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_sample_images

from gfgw_prod.config import DataSettings
from gfgw_prod.data.sources import Table, load_table

SIDE, STRIDE = 32, 16  # of patches, pixels; they are halved by averaging
CLASSES = 2  # photographs


def digits() -> Table:
    """1,797 handwritten digits, ``(1, 8, 8)``, ten classes."""
    return load_table(DataSettings(source="digits"))


def photos() -> Table:
    """1,950 half-overlapping 32x32 patches of two photographs, halved to ``(3, 16, 16)``; a class each."""
    patches, labels = [], []
    for label, photo in enumerate(load_sample_images().images):
        windows = np.lib.stride_tricks.sliding_window_view(photo, (SIDE, SIDE), axis=(0, 1))[::STRIDE, ::STRIDE]
        found = torch.from_numpy(windows.reshape(-1, 3, SIDE, SIDE).copy()).float()
        patches.append(torch.nn.functional.avg_pool2d(found, 2).round().to(torch.uint8))
        labels.append(torch.full((len(found),), label))
    return Table(torch.cat(patches), torch.cat(labels), peak=255, num_classes=CLASSES)


TABLES = {"digits": digits, "photos": photos}
