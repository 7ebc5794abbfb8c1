"""Lists the source that the settings name, and decodes its items in order, in one process or several.

The rows do not depend on the number of processes. ``packing`` writes them to files, ``sources`` loads them into memory.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from gfgw_prod.data.archive import list_archives
from gfgw_prod.data.builtin import list_cifar10, list_digits, list_photos
from gfgw_prod.data.folder import list_folder
from gfgw_prod.data.images import InvalidImageError, Rules
from gfgw_prod.data.listing import Listing, Reader
from gfgw_prod.data.parquet import list_parquet
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.leaving import die_with_parent
from gfgw_prod.process.shared_memory import shared_memory_problem
from gfgw_prod.process.signals import ignore_stop_signals
from gfgw_prod.process.standard_streams import Warned, printable

if TYPE_CHECKING:
    from gfgw_prod.settings.data import DataSettings

Shape = tuple[int, int, int]
OnError = Literal["fail", "skip"]
CHUNK_ITEMS = 256
SHAPE_SAMPLE = 100  # images that determine the common shape
CHUNKS_AHEAD = 3  # chunks per process that are decoded before they are needed


@dataclass(frozen=True)
class Chunk:
    """Decoded items ``begin`` to ``end``: rows ``(k, c, h, w)`` of the valid ones, and why the others are invalid."""

    begin: int
    end: int
    rows: NDArray[np.uint8]
    items: NDArray[np.int64]  # (k,) of the rows
    invalid: list[tuple[int, str]]


def list_source(settings: DataSettings) -> Listing:
    """List the source that the settings name; ``UserError`` if it is missing or not readable."""
    if settings.source == "digits":
        return list_digits()
    if settings.source == "photos":
        return list_photos(settings.image_size)
    if settings.source == "cifar10":
        return list_cifar10(settings.path, download=settings.download)
    if settings.source == "packed":
        raise UserError("data.source packed is packed already; name the source that the pack is made of")
    if settings.path is None:
        raise UserError(f"data.path must name the images of data.source {settings.source}")
    rules = Rules(settings.image_size, settings.resize, settings.grey, settings.peak, settings.background)
    if settings.source == "folder":
        return list_folder(settings.path, rules)
    if settings.source == "zip":
        return list_archives(settings.path, rules)
    return list_parquet(settings.path, rules, settings.image_column, settings.label_column)


def common_shape(listing: Listing) -> Shape:
    """The shape ``(c, h, w)`` of all rows: the most common of the first 100 valid images, in a tie the first.

    So an image of another size is invalid wherever it stands, even first.

    Raises:
        UserError: if no image is valid.
    """
    sizes_vary = listing.rules is not None and listing.rules["image_size"] is None
    sample = SHAPE_SAMPLE if sizes_vary else 1
    seen: Counter[Shape] = Counter()
    first_problem = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as below
        for item, name in enumerate(listing.names):
            try:
                if item in listing.invalid:
                    raise InvalidImageError(listing.invalid[item])
                channels, height, width = listing.reader.row(item).shape
                seen[channels, height, width] += 1
            except InvalidImageError as error:
                first_problem = first_problem or f": {name} {error}"
            if seen.total() == sample:
                break
    if seen:
        return seen.most_common(1)[0][0]
    raise UserError(f"data.path has no valid image, of {len(listing):,} found{first_problem}")


def fail_or_skip(
    listing: Listing, invalid: Sequence[tuple[int, str]], on_error: OnError, log: Callable[[str], None]
) -> None:
    """Log each invalid item, or raise ``UserError`` for the first unless ``on_error`` is ``skip``."""
    lines = [(printable(listing.names[item]), printable(why)) for item, why in invalid]
    if lines and on_error == "fail":
        (name, why), others = lines[0], [name for name, _ in lines[1:]]
        more = f"; so it is with {len(others)} more, such as {others[0]}" if others else ""
        them = "them" if others else "it"
        raise UserError(f"data.path: {name} {why}{more}; mend or remove {them}, or set data.on_error skip")
    for name, why in lines:
        log(Warned(f"skipped {name}: {why}"))


def decode(listing: Listing, shape: Shape, *, workers: int = 0) -> Iterator[Chunk]:
    """Chunks of all items, in order; with 0 ``workers`` they are decoded in this process.

    Raises:
        UserError: if there is no shared memory for decoding processes, or one was killed.
    """
    spans = [(begin, min(begin + CHUNK_ITEMS, len(listing))) for begin in range(0, len(listing), CHUNK_ITEMS)]
    decode_chunk = partial(_decode_chunk, listing.reader, shape, listing.invalid)
    if workers == 0:
        for span in spans:
            yield decode_chunk(*span)
        return
    if problem := shared_memory_problem():
        raise UserError(f"--workers {workers}: {problem}; mount a writable tmpfs there, or give --workers 0")
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # a fork of a process with threads may hang
        initializer=_start_worker,
        initargs=(decode_chunk, os.getpid()),
    )
    waiting: deque[Future[Chunk]] = deque()
    try:
        for span in spans:
            waiting.append(pool.submit(_decode_in_worker, *span))
            if len(waiting) > CHUNKS_AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a process that decodes images was killed, perhaps for lack of memory; fewer --workers take less"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_worker_decodes: Callable[[int, int], Chunk]


def _start_worker(decode_chunk: Callable[[int, int], Chunk], parent: int) -> None:
    global _worker_decodes  # noqa: PLW0603
    _worker_decodes = decode_chunk
    ignore_stop_signals()  # the parent handles them
    die_with_parent(parent)


def _decode_in_worker(begin: int, end: int) -> Chunk:
    return _worker_decodes(begin, end)


def _decode_chunk(reader: Reader, shape: Shape, already_invalid: dict[int, str], begin: int, end: int) -> Chunk:
    rows = np.empty((end - begin, *shape), dtype=np.uint8)
    items: list[int] = []
    invalid: list[tuple[int, str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata; damaged pixels are errors
        for item in range(begin, end):
            try:
                if item in already_invalid:
                    raise InvalidImageError(already_invalid[item])
                row = reader.row(item)
                if row.shape != shape:
                    raise InvalidImageError(
                        f"has {row.shape[2]} x {row.shape[1]} pixels, most of the first images "
                        f"{shape[2]} x {shape[1]}; data.image_size makes all alike"
                    )
            except InvalidImageError as error:
                invalid.append((item, str(error)))
                continue
            rows[len(items)] = row
            items.append(item)
    return Chunk(begin, end, rows[: len(items)], np.array(items, dtype=np.int64), invalid)
