"""The command ``pack``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from gfgw_prod.commands.options import add_config, add_json, path
from gfgw_prod.process.exit_codes import FINISHED
from gfgw_prod.sampling.limits import check_range
from gfgw_prod.settings.reading import SETTINGS_HELP, add_settings, configuration

if TYPE_CHECKING:
    from gfgw_prod.data.packs import Pack
    from gfgw_prod.settings.config import Config

MOST_WORKERS, MOST_SHARD_ROWS = 1024, 1_000_000_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``pack``."""
    parser.description = f"Packs the data set into OUT. {SETTINGS_HELP}"
    parser.usage = "gfgw pack OUT [--verify] [--config FILE] [--workers N] [--shard-rows N] [--json] [--data.X Y ...]"
    parser.add_argument("out", type=path, metavar="OUT", help="directory of the pack, new or of an unfinished one")
    parser.add_argument("--verify", action="store_true", help="hash a finished pack's files: exit code 2 if damaged")
    add_config(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="decoding processes (one per CPU); 0: this one")
    parser.add_argument("--shard-rows", type=int, metavar="N", help="images per file (as many as fit in 256 MiB)")
    add_json(parser)
    add_settings(parser)


def run(options: argparse.Namespace) -> int:
    """Pack the data set, or verify a pack, and print what the pack holds; return the exit code."""
    from gfgw_prod.data.packs import Pack

    config = configuration(options)
    if options.verify:
        found = Pack.read(options.out)
        found.check(progress="auto")
        _print(found, options.json)
        return FINISHED
    if options.workers is not None:
        check_range("--workers", options.workers, 0, MOST_WORKERS)
    if options.shard_rows is not None:
        check_range("--shard-rows", options.shard_rows, 1, MOST_SHARD_ROWS)
    _print(_pack(options, config), options.json)
    return FINISHED


def _pack(options: argparse.Namespace, config: Config) -> Pack:
    from gfgw_prod.data.builtin import ArrayReader
    from gfgw_prod.data.decoding import list_source
    from gfgw_prod.data.packing import pack
    from gfgw_prod.process.meter import Meter

    listing, workers = list_source(config.data), options.workers
    if isinstance(listing.reader, ArrayReader):  # nothing to decode
        workers = 0
    elif workers is None:
        workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    more = {"on_error": config.data.on_error, "workers": workers, "shard_rows": options.shard_rows}
    with Meter("packing", len(listing), "images", mode=config.telemetry.progress) as meter:
        return pack(listing, options.out, log=meter.log, advance=meter.advance, **more)


def _print(pack: Pack, as_json: bool) -> None:
    channels, height, width = pack.image_shape
    if as_json:
        names = ("rows", "image_shape", "num_classes", "peak", "fingerprint")
        content = {name: getattr(pack, name) for name in names} | {"shards": len(pack.shards)}
        content["skipped"] = [{"name": name, "reason": why} for name, why in pack.skipped]
        print(json.dumps(content, indent=1))
        return
    print(
        f"{pack.directory}: {pack.rows:,} images of {width} x {height} x {channels}, {pack.num_classes:,} classes, "
        f"{len(pack.skipped):,} skipped, fingerprint {pack.fingerprint}"
    )
