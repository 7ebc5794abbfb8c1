"""``gfgw pack``: decodes a source into a pack, with several processes. One that was cut short is begun anew."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gfgw_prod.data.decoding import OnError, common_shape, decode, fail_or_skip
from gfgw_prod.data.listing import Listing
from gfgw_prod.data.packs import INDEX, LABELS, Pack, fingerprint_of
from gfgw_prod.data.shard_writer import ShardWriter
from gfgw_prod.process.durable import write_whole
from gfgw_prod.process.exit_codes import UserError, reason_of
from gfgw_prod.process.standard_streams import printable

SHARD_BYTES = 1 << 28
LOCK = "packing.lock"  # marks an unfinished pack, too


def pack(
    listing: Listing,
    directory: Path,
    *,
    log: Callable[[str], None] = lambda line: None,
    advance: Callable[[int], None] = lambda more: None,
    on_error: OnError = "fail",
    workers: int = 0,
    shard_rows: int | None = None,
) -> Pack:
    """Pack a source into ``directory``, which is new or holds an unfinished pack.

    Args:
        advance: receives how many more items are done.
        workers: decoding processes; 0 decodes in this process.
        shard_rows: rows of a shard file; by default as many as fit in 256 MiB.

    Raises:
        UserError: if ``directory`` cannot be written or holds something else, if no image is valid, or, unless
            ``on_error`` is ``skip``, if one is not.
    """
    if os.path.isfile(directory / INDEX):
        return _finished_pack(listing, directory, log, on_error)
    shape = common_shape(listing)
    for note in listing.notes:
        log(note)
    rows = shard_rows or max(SHARD_BYTES // int(np.prod(shape)), 1)
    try:
        with _locked(directory):
            if os.path.isfile(directory / INDEX):  # another process has finished it
                (directory / LOCK).unlink(missing_ok=True)
                return _finished_pack(listing, directory, log, on_error)
            for name in os.listdir(directory):
                if name.lstrip(".").startswith(("images-", LABELS, INDEX)):  # of a packing that was cut short
                    os.unlink(directory / name)
            items: list[NDArray[np.int64]] = []  # of the rows
            invalid: list[tuple[int, str]] = []
            with closing(ShardWriter(directory, rows)) as writer:
                for chunk in decode(listing, shape, workers=workers):
                    fail_or_skip(listing, chunk.invalid, on_error, log)
                    writer.add(chunk.rows)
                    items.append(chunk.items)
                    invalid += chunk.invalid
                    advance(chunk.end - chunk.begin)
                writer.finish_shard()
            packed = _finish(listing, writer, shape, listing.labels[np.concatenate(items)], invalid)
            (directory / LOCK).unlink()
            return packed
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({reason_of(error)}); make room, or name another") from None


def _finished_pack(listing: Listing, directory: Path, log: Callable[[str], None], on_error: OnError) -> Pack:
    """The pack that exists already, unless it is of another source or lacks images that must not be skipped."""
    found = Pack.read(directory)
    if found.identity != listing.identity:
        raise UserError(f"{directory} holds the pack of another source or of other settings; name another directory")
    if on_error == "fail" and found.skipped:
        name, why = map(printable, found.skipped[0])
        problem = f"{directory} was packed without {name} ({why})"
        raise UserError(f"{problem}; set data.on_error skip, or name another directory")
    log(f"{directory} is packed already")
    return found


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Make the directory if needed, and keep other processes from packing into it.

    The lock file is removed once the index is written, so check for the index again while holding the lock.
    """
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise UserError(f"{directory} is not a directory; name a new one for the pack")
    directory.mkdir(parents=True, exist_ok=True)
    held = sorted(os.listdir(directory))
    if held and not any(os.path.isfile(directory / name) for name in (LOCK, INDEX)):
        problem = f"{directory} holds {printable(held[0])}, and no unfinished pack of this version"
        raise UserError(f"{problem}; empty it, or name a new directory for the pack")
    with open(directory / LOCK, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process packs into {directory}; wait for it, or name another directory") from None
        yield


def _finish(
    listing: Listing,
    writer: ShardWriter,
    shape: tuple[int, int, int],
    labels: NDArray[np.int64],
    invalid: Sequence[tuple[int, str]],
) -> Pack:
    """Write the class ids of the rows, then the index, which names the invalid items."""
    label_bytes = labels.astype("<i8").tobytes()
    write_whole(writer.directory / LABELS, label_bytes)
    packed = Pack(
        directory=writer.directory,
        image_shape=shape,
        rows=len(labels),
        peak=listing.peak,
        num_classes=listing.num_classes,
        fingerprint=fingerprint_of(writer.row_digest, labels, shape, listing.peak, listing.num_classes),
        shard_rows=writer.shard_rows,
        shards=tuple(writer.shards),
        labels_sha256=hashlib.sha256(label_bytes).hexdigest(),
        identity=listing.identity,
        skipped=tuple((listing.names[item], why) for item, why in invalid),
        rules=listing.rules,
        class_names=listing.class_names,
    )
    packed.write()
    return packed
