"""Samples from files instead of a generator, and a data set split into halves to compare figures with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from gfgw_prod.data.sources import Table, load_table
from gfgw_prod.distributed.cells import random_stream
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.data import Background, DataSettings
from gfgw_prod.settings.evaluation import FEWEST


def read_samples(place: Path, data: Table, background: Background | None = None) -> Table:
    """Read samples from a folder of images, as ``data.source folder`` takes it; ``gfgw sample`` writes such a folder.

    Where folders and data both name their classes, samples get the ids of the data.

    Args:
        background: colour that transparent samples are put on, as those of the data are.

    Raises:
        UserError: if they cannot be read, are too few, or have another shape or other classes than the data.
    """
    if not place.is_dir():
        raise UserError(f"--samples {place} is not a directory; it wants one with images in it")
    try:
        found = _read_folder(place, data, background)
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


def _read_folder(place: Path, data: Table, background: Background | None) -> Table:
    grey = data.image_shape[0] == 1
    found = load_table(DataSettings(source="folder", path=place, grey=grey, background=background))
    if not (found.class_names and data.class_names):
        return found
    if unknown := [name for name in found.class_names if name not in data.class_names]:
        raise UserError(f"the data set has no class {unknown[0]!r}")
    ids = torch.tensor([data.class_names.index(name) for name in found.class_names])
    return Table(found.images, ids[found.labels], found.peak, data.num_classes)
