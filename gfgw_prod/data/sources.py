"""Data sets as tables: every image by row id, uint8, with its class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gfgw_prod.data.builtin import CIFAR10_ROWS, DIGITS
from gfgw_prod.data.decoding import common_shape, decoded, list_source
from gfgw_prod.data.listing import Listing
from gfgw_prod.data.packing import tell_of_odd
from gfgw_prod.data.packs import Fingerprint, Pack, Shards
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.meter import MB, Meter, Mode
from gfgw_prod.settings.data import RULES
from gfgw_prod.settings.types import as_written

if TYPE_CHECKING:
    from gfgw_prod.distributed.world import World
    from gfgw_prod.settings.data import DataSettings

MOST_BYTES_UNPACKED = 2 << 30  # that every rank holds in memory, of a source that is not packed


@dataclass(frozen=True)
class Table:
    """Images ``(N, c, h, w)`` with values 0..``peak`` as uint8, in memory or in a pack, and class ids ``(N,)``."""

    images: Tensor | Shards
    labels: Tensor
    peak: int
    num_classes: int
    pack: Pack | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def rows(self, ids: Tensor) -> Tensor:
        """Images by row id as floats in [-1, 1], ``(n,)`` -> ``(n, c, h, w)``."""
        if isinstance(self.images, Tensor):
            found = self.images[ids]
        else:
            found = torch.from_numpy(self.images.take(ids.numpy()))
        return found.to(torch.float32) / (self.peak / 2) - 1

    def fingerprint(self) -> str:
        """SHA-256 over images, labels and what they mean: equal exactly when the data are. A pack's is in its index."""
        if self.pack is not None:
            return self.pack.fingerprint
        assert isinstance(self.images, Tensor)
        digest = Fingerprint()
        digest.add(self.images.contiguous().numpy().data)
        return digest.of(self.labels.numpy(), self.image_shape, self.peak, self.num_classes)

    def check(self, part: int, parts: int, progress: Mode = "off") -> None:
        """Hashes every ``parts``-th file of a pack, from file ``part`` on.

        Raises:
            UserError: if a file is not as it was packed.
        """
        if self.pack is None:
            return
        title, total = f"checking {self.pack.place}", self.pack.bytes // parts
        with Meter(title, total, "MB", scale=MB, mode=progress) as meter:
            problem = self.pack.damaged(part, parts, meter.advance)
        if problem:
            raise UserError(f"data.path {self.pack.place}: {problem}; pack the data set again")


@dataclass(frozen=True)
class _Teller:
    """Tells what is skipped, and how far it is."""

    log: Callable[[str], None]
    advance_to: Callable[[int], None]


def load_table(settings: DataSettings, say: Callable[[str], None] = lambda line: None, progress: Mode = "off") -> Table:
    """The data set of the settings; what is not packed is decoded into memory.

    Args:
        say: told of every image that is skipped.

    Raises:
        UserError: if it is missing, empty, not readable, or too large to be decoded into memory.
    """
    if settings.source == "packed":
        pack = _pack_of(settings)
        return Table(pack.images(), torch.from_numpy(pack.labels()), pack.peak, pack.num_classes, pack)
    listing = list_source(settings)
    shape = common_shape(listing)
    if (size := len(listing) * math.prod(shape)) > MOST_BYTES_UNPACKED:
        raise UserError(
            f"data.source {settings.source}: {len(listing):,} images of {' x '.join(map(str, shape))} take "
            f"{size / 2**30:.1f} GiB in the memory of every rank; pack them once (gfgw pack) and use data.source packed"
        )
    rows, labels = [], []
    with Meter("decoding the data", len(listing), "images", mode=progress) as meter:
        for chunk in decoded(listing, shape):
            tell_of_odd(listing, chunk.odd, settings.on_error, _Teller(say, meter.advance_to))
            meter.advance_to(chunk.end)
            rows.append(chunk.rows)
            labels.append(listing.labels[chunk.taken])
    images = torch.from_numpy(np.concatenate(rows))
    return Table(images, torch.from_numpy(np.concatenate(labels)), listing.peak, listing.num_classes)


def open_table(settings: DataSettings, world: World, say: Callable[[str], None], progress: Mode = "auto") -> Table:
    """The data set of the settings on every rank; a pack is hashed by those of each node together. Collective.

    Every node hashes all files: it may have copies of its own.

    Raises:
        UserError: as ``load_table`` does, or if a pack is damaged.
    """
    progress = progress if world.is_main else "off"
    table = world.main_first(lambda: load_table(settings, say, progress))
    if settings.verify:
        world.together(lambda: table.check(world.local_rank, world.local_world_size, progress))
    return table


def shape_and_classes(settings: DataSettings) -> tuple[tuple[int, int, int], int, int]:
    """Image shape, number of classes and of rows of a data set; of built-in ones without reading them.

    Raises:
        UserError: if others are missing or not readable.
    """
    if settings.source == "digits":
        return (1, 8, 8), 10, DIGITS
    if settings.source == "cifar10":
        return (3, 32, 32), 10, CIFAR10_ROWS
    if settings.source == "packed":
        pack = _pack_of(settings)
        return pack.image_shape, pack.num_classes, pack.rows
    listing: Listing = list_source(settings)
    channels, height, width = common_shape(listing)
    return (channels, height, width), listing.num_classes, len(listing) - len(listing.odd)


def _pack_of(settings: DataSettings) -> Pack:
    if settings.path is None:
        raise UserError("data.path must name the pack of data.source packed; `gfgw pack` makes one")
    pack = Pack.read(settings.path)
    side = settings.image_size
    if side is not None and pack.image_shape[1:] != (side, side):
        raise UserError(
            f"data.path {settings.path} has images of {pack.image_shape[2]} x {pack.image_shape[1]} pixels, not "
            f"data.image_size {side}; pack the source again, with that size"
        )
    made_by: dict[str, Any] = {"grey": pack.image_shape[0] == 1, "peak": pack.peak, **(pack.rules or {})}
    for name in RULES:
        if name in made_by and settings.given(name) and (given := getattr(settings, name)) != made_by[name]:
            raise UserError(
                f"data.path {settings.path} was packed with data.{name} {as_written(made_by[name])}, not "
                f"{as_written(given)}; leave out data.{name}, or pack the source again"
            )
    return pack
