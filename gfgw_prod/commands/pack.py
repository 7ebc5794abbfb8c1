"""The command ``pack``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from gfgw_prod.data.builtin import ArrayReader
from gfgw_prod.data.decoding import list_source
from gfgw_prod.data.packing import pack
from gfgw_prod.data.packs import Pack
from gfgw_prod.process.exit_codes import BAD_INPUT, FINISHED, PREEMPTED, UserError
from gfgw_prod.process.meter import MB, Meter, Mode
from gfgw_prod.process.signals import StopRequestedError, stop_request_raises
from gfgw_prod.process.standard_streams import log
from gfgw_prod.settings.data import DataSettings

MOST_WORKERS, MOST_SHARD_ROWS = 1024, 1_000_000_000


def pack_source(
    settings: DataSettings,
    out: Path,
    *,
    workers: int | None,
    shard_rows: int | None,
    progress: Mode,
    as_json: bool,
) -> int:
    """Packs the source of the settings into ``out``, and prints what it holds.

    Returns:
        The exit code: told to stop, it leaves what is packed for the next start.

    Args:
        workers: processes that decode; as many as there are CPUs, if ``None``.

    Raises:
        UserError: if it cannot be packed.
    """
    for name, value, least, most in (
        ("--workers", workers, 0, MOST_WORKERS),
        ("--shard-rows", shard_rows, 1, MOST_SHARD_ROWS),
    ):
        if value is not None and not least <= value <= most:
            raise UserError(f"{name} should lie between {least} and {most:,}, not {value}")
    try:
        with stop_request_raises():
            made = _packed(settings, out, workers, shard_rows, progress)
    except StopRequestedError:
        log("gfgw: told to stop; the same command goes on from the last whole file of the pack")
        return PREEMPTED
    _print(made, as_json)
    return FINISHED


def _packed(
    settings: DataSettings,
    out: Path,
    workers: int | None,
    shard_rows: int | None,
    progress: Mode,
) -> Pack:
    listing = list_source(settings)
    if isinstance(listing.reader, ArrayReader):  # there is nothing to decode
        workers = 0
    elif workers is None:
        workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with Meter("packing", len(listing), "images", mode=progress) as meter:
        return pack(
            listing,
            out,
            log=meter.log,
            advance=meter.advance,
            on_error=settings.on_error,
            workers=workers,
            shard_rows=shard_rows,
        )


def verify_pack(place: Path, *, as_json: bool) -> int:
    """Hashes every file of a pack; returns 2 if one is damaged.

    Raises:
        UserError: if there is no pack.
    """
    found = Pack.read(place)
    with Meter(f"checking {place}", found.bytes, "MB", scale=MB) as meter:
        problem = found.damage(advance=meter.advance)
    if problem:
        log(f"gfgw: {place}: {problem}; pack the data set again")
        return BAD_INPUT
    _print(found, as_json)
    return FINISHED


def _print(made: Pack, as_json: bool) -> None:
    channels, height, width = made.image_shape
    if as_json:
        told = {
            "rows": made.rows,
            "image_shape": [channels, height, width],
            "num_classes": made.num_classes,
            "peak": made.peak,
            "fingerprint": made.fingerprint,
            "shards": len(made.shards),
            "skipped": [{"name": name, "reason": why} for name, why in made.skipped],
        }
        print(json.dumps(told, indent=1))
        return
    print(
        f"{made.directory}: {made.rows:,} images of {width} x {height} x {channels}, {made.num_classes:,} classes, "
        f"{len(made.skipped):,} skipped, fingerprint {made.fingerprint}"
    )
