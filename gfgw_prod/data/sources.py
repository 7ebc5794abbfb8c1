"""Opens the data set that the settings name, as a table of images by row id.

A pack (``packs``) is memory-mapped; any other source is listed and decoded into memory (``decoding``).
``stream`` reads the table in the order of training.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gfgw_prod.data.builtin import CIFAR10_ROWS, DIGITS, DIGITS_OF_A_CLASS
from gfgw_prod.data.decoding import common_shape, decode, fail_or_skip, list_source
from gfgw_prod.data.packs import Pack, Shards, SomeRows, fingerprint_of
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.meter import Meter, Mode
from gfgw_prod.process.standard_streams import printable
from gfgw_prod.settings.data import RULES
from gfgw_prod.settings.types import as_written

if TYPE_CHECKING:
    from gfgw_prod.distributed.world import World
    from gfgw_prod.settings.data import DataSettings

MAX_BYTES_UNPACKED = 2 << 30  # every rank holds a source that is not packed in memory


@dataclass(frozen=True)
class Table:
    """Images ``(N, c, h, w)``, uint8, values 0 to ``peak``, in memory or in a pack; and class ids ``(N,)``, int64."""

    images: Tensor | Shards | SomeRows
    labels: Tensor
    peak: int
    num_classes: int
    pack: Pack | None = None
    class_names: tuple[str, ...] = ()  # by class id, if the source names its classes

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

    def has_equal_channels(self) -> bool:
        """Whether all images, if they are in memory, are grey in three channels."""
        images = self.images
        return (
            isinstance(images, Tensor)
            and images.shape[1] == 3
            and all(torch.equal(block, block[:, :1].expand_as(block)) for block in images.split(1000))
        )

    def part(self, ids: Tensor) -> Table:
        """A table of some rows, by id ``(n,)``."""
        images = self.images[ids] if isinstance(self.images, Tensor) else SomeRows(self.images, ids.numpy())
        return replace(self, images=images, labels=self.labels[ids], pack=None)

    def fingerprint(self) -> str:
        """``fingerprint_of`` the data. A pack has it in its index."""
        if self.pack is not None:
            return self.pack.fingerprint
        assert isinstance(self.images, Tensor)
        digest = hashlib.sha256(self.images.contiguous().numpy().data)
        return fingerprint_of(digest, self.labels.numpy(), self.image_shape, self.peak, self.num_classes)


def load_table(settings: DataSettings, log: Callable[[str], None] = lambda line: None, progress: Mode = "off") -> Table:
    """Open a pack, or decode any other source into memory; log skipped images and the listing's notes.

    Raises:
        UserError: if it is missing, empty, not readable, or too large for memory.
    """
    if settings.source == "packed":
        pack = _open_pack(settings)
        with _naming_the_setting():
            labels = torch.from_numpy(pack.labels())
        return Table(Shards(pack), labels, pack.peak, pack.num_classes, pack, pack.class_names)
    listing = list_source(settings)
    shape = common_shape(listing)
    if (size := len(listing) * math.prod(shape)) > MAX_BYTES_UNPACKED:
        raise UserError(
            f"data.source {settings.source}: {len(listing):,} images of {' x '.join(map(str, shape))} take "
            f"{size / 2**30:.1f} GiB in the memory of every rank; pack them once (gfgw pack) and use data.source packed"
        )
    for note in listing.notes:
        log(note)
    chunks = []
    with Meter("decoding the data", len(listing), "images", mode=progress) as meter:
        for chunk in decode(listing, shape):
            meter.advance_to(chunk.end)
            chunks.append(chunk)
    fail_or_skip(listing, [each for chunk in chunks for each in chunk.invalid], settings.on_error, log)
    images = torch.from_numpy(np.concatenate([chunk.rows for chunk in chunks]))
    labels = torch.from_numpy(listing.labels[np.concatenate([chunk.items for chunk in chunks])])
    return Table(images, labels, listing.peak, listing.num_classes, class_names=listing.class_names)


def open_table(settings: DataSettings, world: World, log: Callable[[str], None], progress: Mode = "auto") -> Table:
    """``load_table`` on every rank. The ranks of a node hash a pack together. Collective.

    Each node hashes all files, as it may have its own copy.

    Raises:
        UserError: as ``load_table`` does, or if a pack is damaged.
    """
    progress = progress if world.is_main else "off"
    table = world.rank0_first(lambda: load_table(settings, log, progress))
    if settings.verify and (pack := table.pack) is not None:
        with _naming_the_setting():
            world.on_all_ranks(lambda: pack.check(world.local_rank, world.local_world_size, progress))
    return table


class Outline(NamedTuple):
    """What is known of a data set before its images are decoded."""

    image_shape: tuple[int, int, int]
    num_classes: int
    rows: int
    largest_class: int  # rows of the largest class


def outline_of(settings: DataSettings, log: Callable[[str], None] = lambda line: None) -> Outline:
    """Outline a data set, without reading digits or CIFAR-10; ``UserError`` if it is unreadable.

    Images are listed, not decoded; the listing's notes are logged.
    """
    if settings.source == "digits":
        return Outline((1, 8, 8), 10, DIGITS, DIGITS_OF_A_CLASS)
    if settings.source == "cifar10":
        return Outline((3, 32, 32), 10, CIFAR10_ROWS, CIFAR10_ROWS // 10)
    if settings.source == "packed":
        pack = _open_pack(settings)
        with _naming_the_setting():
            return Outline(pack.image_shape, pack.num_classes, pack.rows, _most_alike(pack.labels()))
    listing = list_source(settings)
    for note in listing.notes:
        log(note)
    if listing.invalid:
        first = min(listing.invalid)
        example = f"{printable(listing.names[first])} {printable(listing.invalid[first])}"
        log(f"{len(listing.invalid):,} of {len(listing):,} images cannot be used, such as {example}")
    rows = len(listing) - len(listing.invalid)
    return Outline(common_shape(listing), listing.num_classes, rows, _most_alike(listing.labels[listing.labels >= 0]))


def _most_alike(labels: NDArray[np.int64]) -> int:
    return int(np.bincount(labels).max(initial=0))


def _open_pack(settings: DataSettings) -> Pack:
    """The pack that the settings name. Rules that they set must be the same as the pack's."""
    if settings.path is None:
        raise UserError("data.path must name the pack of data.source packed; `gfgw pack` makes one")
    with _naming_the_setting():
        pack = Pack.read(settings.path)
    side = settings.image_size
    if side is not None and pack.image_shape[1:] != (side, side):
        raise UserError(
            f"data.path {settings.path} has images of {pack.image_shape[2]} x {pack.image_shape[1]} pixels, not "
            f"data.image_size {side}; pack the source again, with that size"
        )
    rules: dict[str, Any] = {"grey": pack.image_shape[0] == 1, "peak": pack.peak, **(pack.rules or {})}
    for name in RULES:
        if name in rules and settings.is_set(name) and (value := getattr(settings, name)) != rules[name]:
            raise UserError(
                f"data.path {settings.path} was packed with data.{name} {as_written(rules[name])}, not "
                f"{as_written(value)}; leave out data.{name}, or pack the source again"
            )
    return pack


@contextmanager
def _naming_the_setting() -> Iterator[None]:
    """Begin the line about a pack, which names its directory, with the setting that does."""
    try:
        yield
    except UserError as error:
        raise UserError(f"data.path {error}") from None
