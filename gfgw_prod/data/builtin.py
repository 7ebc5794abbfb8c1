"""Sources ``digits`` and ``photos``, which scikit-learn ships, and ``cifar10``, from its official archive."""

from __future__ import annotations

import gzip
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gfgw_prod.data.images import InvalidImageError, Row, Rules
from gfgw_prod.data.listing import Entry, Listing, make_listing
from gfgw_prod.process.exit_codes import UserError, one_line

PATCH_SIDE, PATCH_STRIDE = 32, 16  # pixels
PHOTOS = ("china.jpg", "flower.jpg")
DIGITS, CIFAR10_ROWS = 1_797, 50_000
DIGITS_OF_A_CLASS = 183  # at most
ARCHIVE = "cifar-10-python.tar.gz"


@dataclass(frozen=True)
class ArrayReader:
    """Rows ``(n, c, h, w)`` in memory."""

    images: NDArray[np.uint8]

    def row(self, item: int) -> Row:
        row: Row = self.images[item]
        return row


def _list_array(
    source: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    peak: int,
    num_classes: int,
    class_names: Sequence[str] = (),
) -> Listing:
    entries = (Entry(f"{source}:{row}", int(label)) for row, label in enumerate(labels))
    identity = [source, list(images.shape)]
    reader = ArrayReader(images)
    return make_listing(entries, reader, peak=peak, num_classes=num_classes, identity=identity, class_names=class_names)


def list_digits() -> Listing:
    """1,797 handwritten 8x8 digits with 17 grey levels (UCI optical digits)."""
    with gzip.open(_scikit_learn_file("digits", Path("data", "digits.csv.gz")), "rt") as file:
        values = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    images = values[:, :-1].reshape(-1, 1, 8, 8).copy()
    return _list_array("digits", images, values[:, -1].astype(np.int64), peak=16, num_classes=10)


def list_photos(side: int | None) -> Listing:
    """Patches of scikit-learn's two photographs, on a grid of half a patch, row by row; each photograph is a class.

    With the default side, 32 pixels, there are 1,950. ``UserError`` if a photograph is smaller than a patch.
    """
    side = PATCH_SIDE if side is None else side
    stride = max(side * PATCH_STRIDE // PATCH_SIDE, 1)
    patches, labels = [], []
    for label, name in enumerate(PHOTOS):
        file = _scikit_learn_file("photos", Path("images", name))
        try:
            photo = Rules().decode(file.read_bytes())
        except (OSError, InvalidImageError) as error:
            raise UserError(f"data.source photos: {file} {one_line(error)}; install scikit-learn again") from None
        if side > min(photo.shape[1:]):
            most = min(photo.shape[1:])
            raise UserError(f"data.image_size should be at most {most} for data.source photos, not {side}")
        windows = np.lib.stride_tricks.sliding_window_view(photo, (side, side), axis=(1, 2))[:, ::stride, ::stride]
        patches.append(windows.transpose(1, 2, 0, 3, 4).reshape(-1, 3, side, side))
        labels.append(np.full(len(patches[-1]), label, dtype=np.int64))
    return _list_array("photos", np.concatenate(patches), np.concatenate(labels), peak=255, num_classes=len(PHOTOS))


def list_cifar10(path: Path | None, *, download: bool) -> Listing:
    """The 50,000 training images of CIFAR-10 from its official archive (Krizhevsky 2009)."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    if path is None:
        raise UserError("data.path must name the directory that holds (or will receive) CIFAR-10's archive " + ARCHIVE)
    # os.path, unlike Path, reports circular links and overlong names as missing instead of raising.
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UserError(f"data.path {path} is not a directory")
    if os.path.lexists(path / ARCHIVE) and not os.path.isfile(path / ARCHIVE):
        raise UserError(f"data.path {path}: {ARCHIVE} there is not a regular file")
    present = os.path.isfile(path / ARCHIVE) or os.path.isdir(path / CIFAR10.base_folder)
    if not present and not download:
        raise UserError(f"data.path {path} has no {ARCHIVE}; put it there or set data.download true")
    try:
        # `download=True` also verifies and unpacks an archive that is present, without a network.
        unpack = download or check_integrity(str(path / ARCHIVE), CIFAR10.tgz_md5)
        dataset = CIFAR10(str(path), train=True, download=unpack)
    except (OSError, RuntimeError, EOFError) as error:
        problem = f"CIFAR-10 cannot be read or downloaded ({one_line(error)})"
        raise UserError(f"data.path {path}: {problem}; put the official {ARCHIVE} there") from None
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))
    labels = np.array(dataset.targets, dtype=np.int64)
    return _list_array("cifar10", images, labels, peak=255, num_classes=10, class_names=dataset.classes)


def _scikit_learn_file(source: str, file: Path) -> Path:
    # Read the file directly: importing scikit-learn takes two seconds at every start.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"data.source {source} needs scikit-learn, which is not installed")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / file
    if not path.is_file():
        raise UserError(f"data.source {source}: no file {path}; install scikit-learn again")
    return path
