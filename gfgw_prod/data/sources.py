"""Data sets as tables: every image by row id, uint8, with its class."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gfgw_prod.resilience.exit_codes import UserError, one_line

if TYPE_CHECKING:
    from gfgw_prod.config import DataSettings


@dataclass(frozen=True)
class Table:
    """Images ``(N, c, h, w)`` with values 0..``peak`` as uint8, and class ids ``(N,)``."""

    images: Tensor
    labels: Tensor
    peak: int
    num_classes: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def rows(self, ids: Tensor) -> Tensor:
        """Images by row id as floats in [-1, 1], ``(n,)`` -> ``(n, c, h, w)``."""
        return self.images[ids].to(torch.float32) / (self.peak / 2) - 1

    def fingerprint(self) -> str:
        """SHA-256 over shapes, images and labels: equal exactly when the data are."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.peak, self.num_classes)).encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


def load_table(settings: DataSettings) -> Table:
    """The data set of the settings.

    Raises:
        UserError: if it is missing, empty or not readable.
    """
    return {"digits": _digits, "cifar10": _cifar10}[settings.source](settings)


def _digits(settings: DataSettings) -> Table:
    """1,797 handwritten 8x8 digits with 17 grey levels, shipped with scikit-learn (UCI optical digits)."""
    # The file is read directly: importing scikit-learn costs two seconds of every start and restart.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("data.source digits needs scikit-learn, which is not installed")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise UserError(f"data.source digits: no file {path}; install scikit-learn again")
    with gzip.open(path, "rt") as file:
        values = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(values[:, :-1].reshape(-1, 1, 8, 8).copy())
    return Table(images, torch.from_numpy(values[:, -1].astype(np.int64)), peak=16, num_classes=10)


def _cifar10(settings: DataSettings) -> Table:
    """The 50,000 training images of CIFAR-10 from its official archive (Krizhevsky 2009)."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    archive = "cifar-10-python.tar.gz"
    if settings.path is None:
        raise UserError("data.path must name the directory that holds (or will receive) CIFAR-10's archive " + archive)
    # The functions of os.path take loops of links and names that are too long for what is not there.
    if os.path.lexists(settings.path) and not os.path.isdir(settings.path):
        raise UserError(f"data.path {settings.path} is not a directory")
    if os.path.lexists(settings.path / archive) and not os.path.isfile(settings.path / archive):
        raise UserError(f"data.path {settings.path}: {archive} there is not a regular file")
    present = os.path.isfile(settings.path / archive) or os.path.isdir(settings.path / CIFAR10.base_folder)
    if not present and not settings.download:
        raise UserError(f"data.path {settings.path} has no {archive}; put it there or set data.download true")
    try:
        # `download=True` also verifies and unpacks an archive that is already there, without a network.
        unpack = settings.download or check_integrity(str(settings.path / archive), CIFAR10.tgz_md5)
        dataset = CIFAR10(str(settings.path), train=True, download=unpack)
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(
            f"data.path {settings.path}: CIFAR-10 cannot be read or downloaded ({one_line(error)}); "
            f"put the official {archive} there"
        ) from None
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return Table(images, torch.tensor(dataset.targets), peak=255, num_classes=10)


def shape_and_classes(source: str) -> tuple[tuple[int, int, int], int, int]:
    """Image shape, number of classes and of rows of a built-in source, without reading it."""
    return {"digits": ((1, 8, 8), 10, 1_797), "cifar10": ((3, 32, 32), 10, 50_000)}[source]
