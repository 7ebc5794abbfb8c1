"""Decodes a source's items in their order, in this process or several. The result does not depend on how many."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gfgw_prod.data.images import OddImageError, Rules
from gfgw_prod.data.listing import Listing, Reader
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.leaving import die_with_parent
from gfgw_prod.process.signals import ignore_stop_signals

if TYPE_CHECKING:
    from gfgw_prod.settings.data import DataSettings

Shape = tuple[int, ...]
CHUNK_ITEMS = 256
SHAPES_SEEN = 100  # images that the shape of all is told by
AHEAD = 3  # chunks per process that are decoded before they are asked for


@dataclass(frozen=True)
class Chunk:
    """Items ``begin`` to ``end``: rows ``(k, c, h, w)`` of those that can be taken, and why the others cannot."""

    begin: int
    end: int
    rows: NDArray[np.uint8]
    taken: NDArray[np.int64]  # (k,) items
    odd: list[tuple[int, str]]


def list_source(settings: DataSettings) -> Listing:
    """What the source of the settings holds.

    Raises:
        UserError: if it is missing or not readable.
    """
    if settings.source == "digits":
        from gfgw_prod.data.builtin import list_digits

        return list_digits()
    if settings.source == "photos":
        from gfgw_prod.data.builtin import list_photos

        return list_photos(settings.image_size)
    if settings.source == "cifar10":
        from gfgw_prod.data.builtin import list_cifar10

        return list_cifar10(settings.path, download=settings.download)
    if settings.source == "packed":
        raise UserError("data.source packed is packed already; name the source that the pack is made of")
    if settings.path is None:
        raise UserError(f"data.path must name the images of data.source {settings.source}")
    rules = Rules(settings.image_size, settings.resize, settings.grey, settings.peak)
    if settings.source == "folder":
        from gfgw_prod.data.folder import list_folder

        return list_folder(settings.path, rules)
    if settings.source == "zip":
        from gfgw_prod.data.archive import list_archives

        return list_archives(settings.path, rules)
    from gfgw_prod.data.parquet import list_parquet

    return list_parquet(settings.path, rules, settings.image_column, settings.label_column)


def common_shape(listing: Listing) -> Shape:
    """The shape ``(c, h, w)`` that all rows have: the commonest of the first 100 images, of as common ones the first.

    So an image of another size, wherever it lies, is the one that is odd.

    Raises:
        UserError: if no image can be taken.
    """
    as_they_are = listing.rules is not None and listing.rules["image_size"] is None
    most = SHAPES_SEEN if as_they_are else 1  # all are made alike
    seen: Counter[Shape] = Counter()
    first_problem = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as below
        for item, name in enumerate(listing.names):
            try:
                if item in listing.odd:
                    raise OddImageError(listing.odd[item])
                seen[listing.reader.row(item).shape] += 1
            except OddImageError as error:
                first_problem = first_problem or f": {name} {error}"
            if seen.total() == most:
                break
    if seen:
        return seen.most_common(1)[0][0]
    raise UserError(f"data.path has no image that can be taken, of {len(listing):,} found{first_problem}")


def decoded(listing: Listing, shape: Shape, *, first: int = 0, workers: int = 0) -> Iterator[Chunk]:
    """Chunks of the items from ``first`` on, in order.

    Args:
        workers: processes that decode; 0 is this one.

    Raises:
        UserError: if a process ends before its work.
    """
    spans = [(begin, min(begin + CHUNK_ITEMS, len(listing))) for begin in range(first, len(listing), CHUNK_ITEMS)]
    if workers == 0:
        for begin, end in spans:
            yield _chunk(listing.reader, shape, begin, end, _known(listing, begin, end))
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # a fork of a process with threads may hang
        initializer=_begin_worker,
        initargs=(listing.reader, shape, os.getpid()),
    )
    waiting: deque[Future[Chunk]] = deque()
    try:
        for begin, end in spans:
            waiting.append(pool.submit(_work, begin, end, _known(listing, begin, end)))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a process that decodes images was killed, for want of memory perhaps; the same command goes on from what "
            "is packed, and fewer --workers take less memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _known(listing: Listing, begin: int, end: int) -> dict[int, str]:
    return {item: listing.odd[item] for item in range(begin, end) if item in listing.odd}


_reader: Reader
_shape: Shape


def _begin_worker(reader: Reader, shape: Shape, parent: int) -> None:
    global _reader, _shape
    _reader, _shape = reader, shape
    ignore_stop_signals()  # the parent handles them
    die_with_parent(parent)


def _work(begin: int, end: int, known: dict[int, str]) -> Chunk:
    return _chunk(_reader, _shape, begin, end, known)


def _chunk(reader: Reader, shape: Shape, begin: int, end: int, known: dict[int, str]) -> Chunk:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged metadata; damaged pixels are errors
        return _rows_of(reader, shape, begin, end, known)


def _rows_of(reader: Reader, shape: Shape, begin: int, end: int, known: dict[int, str]) -> Chunk:
    rows = np.empty((end - begin, *shape), dtype=np.uint8)
    taken: list[int] = []
    odd: list[tuple[int, str]] = []
    for item in range(begin, end):
        try:
            if item in known:
                raise OddImageError(known[item])
            row = reader.row(item)
            if row.shape != shape:
                raise OddImageError(
                    f"has {row.shape[2]} x {row.shape[1]} pixels, most of the first images {shape[2]} x {shape[1]}; "
                    "data.image_size makes all alike"
                )
        except OddImageError as error:
            odd.append((item, str(error)))
            continue
        rows[len(taken)] = row
        taken.append(item)
    return Chunk(begin, end, rows[: len(taken)], np.array(taken, dtype=np.int64), odd)
