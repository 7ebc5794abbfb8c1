"""Samples from files instead of a generator, and a data set split into halves to compare figures with."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gfgw_prod.data.sources import Table, load_table
from gfgw_prod.distributed.cells import random_stream
from gfgw_prod.process.exit_codes import UserError, one_line
from gfgw_prod.settings.data import DataSettings
from gfgw_prod.settings.evaluation import FEWEST


def read_samples(place: Path, data: Table) -> Table:
    """Read samples of the form of a data set: a folder of images as ``data.source folder`` takes it, or an ``.npz``.

    The ``.npz`` is that of ``gfgw sample --npz``: ``arr_0`` ``(n, h, w, c)``, uint8, and class ids ``arr_1`` ``(n,)``,
    if there are any. Where folders and data both name their classes, samples get the ids of the data.

    Raises:
        UserError: if they cannot be read, are too few, or have another shape or other classes than the data.
    """
    try:
        found = _read_folder(place, data) if os.path.isdir(place) else _read_npz(place)
        if found.image_shape != data.image_shape:
            raise UserError(f"its images (c, h, w) are {found.image_shape}, those of the data set {data.image_shape}")
        if len(found) < FEWEST:
            raise UserError(f"it holds {len(found)} images; evaluation takes at least {FEWEST}")
        if data.num_classes == 1:  # classes of the samples mean nothing there
            return replace(found, num_classes=1)
        if found.num_classes > data.num_classes:
            raise UserError(f"it has {found.num_classes} classes, the data set {data.num_classes}")
    except UserError as error:
        # The error may name settings of a data set, which samples do not have.
        problem = str(error).removeprefix("data.path").lstrip(": ").removeprefix(f"{place}: ")
        raise UserError(f"--samples {place}: {problem.partition('; mend or remove')[0]}") from None
    return found


def halves_of(data: Table, seed: int) -> tuple[Table, Table]:
    """Split a data set at random into two halves with equally many images of each class."""
    if len(data) < 2 * FEWEST:
        raise UserError(f"--halves takes a data set of at least {2 * FEWEST} images; this one has {len(data)}")
    order = torch.randperm(len(data), generator=random_stream(seed, "halves"))
    order = order[data.labels[order].argsort(stable=True)]  # class by class
    first, second = (ids.sort().values for ids in (order[::2], order[1::2]))
    return data.part(first), data.part(second)


def _read_folder(place: Path, data: Table) -> Table:
    found = load_table(DataSettings(source="folder", path=place, grey=data.image_shape[0] == 1))
    if not (found.class_names and data.class_names):
        return found
    if unknown := [name for name in found.class_names if name not in data.class_names]:
        raise UserError(f"the data set has no class {unknown[0]!r}")
    ids = torch.tensor([data.class_names.index(name) for name in found.class_names])
    return Table(found.images, ids[found.labels], found.peak, data.num_classes)


def _read_npz(place: Path) -> Table:
    if not os.path.isfile(place) or not zipfile.is_zipfile(place):
        raise UserError("it is neither a folder of images nor an .npz")
    try:
        with np.load(place, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("arr_0", "arr_1") if name in file}
    except (OSError, ValueError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"it cannot be read: {one_line(error, 200)}") from None
    images, labels = arrays.get("arr_0"), arrays.get("arr_1")
    if images is None or images.dtype != np.uint8 or images.ndim != 4:
        raise UserError("arr_0 should hold the images, uint8 (n, h, w, c)")
    ids = torch.zeros(len(images), dtype=torch.int64)
    if labels is not None:
        if labels.dtype.kind not in "iu" or labels.shape != (len(images),) or labels.min(initial=0) < 0:
            raise UserError("arr_1 should hold the class ids, whole numbers (n,)")
        ids = torch.from_numpy(labels.astype(np.int64))
    classes = 1 if labels is None or not len(ids) else int(ids.max()) + 1
    return Table(torch.from_numpy(images).permute(0, 3, 1, 2), ids, 255, classes)
