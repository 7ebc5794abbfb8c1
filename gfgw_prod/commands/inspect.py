"""The command ``inspect``."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from gfgw_prod.commands.options import add_json, add_place
from gfgw_prod.process.exit_codes import BAD_INPUT, FINISHED

if TYPE_CHECKING:
    from gfgw_prod.checkpoint.reading import Checkpoint
    from gfgw_prod.process.meter import Meter


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``inspect``."""
    add_place(parser, "run directory or one of its checkpoints")
    parser.add_argument("--verify", action="store_true", help="leave with exit code 2 if any is damaged")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print step, images, age, size, state and weights' digest of every checkpoint; return the exit code.

    Raises:
        UserError: if there is no checkpoint.
    """
    from gfgw_prod.checkpoint.finding import list_checkpoints
    from gfgw_prod.process.meter import MB, Meter

    found = list_checkpoints(options.place)
    total = sum(checkpoint.bytes for _, checkpoint, _ in found if checkpoint is not None)
    with Meter(f"checking {options.place}", total, "MB", scale=MB) as meter:
        rows = [_row(name, checkpoint, problem, meter) for name, checkpoint, problem in found]
    code = BAD_INPUT if options.verify and not all(row["verified"] for row in rows) else FINISHED
    if options.json:
        print(json.dumps({"checkpoints": rows}, indent=1))
        return code
    print(f"{'checkpoint':<16}{'kimg':>10}{'MB':>9}{'age':>10}  {'whole':<7}weights_sha256")
    for row in rows:
        if row["bytes"] is None:
            print(f"{row['name']:<16}{'':>29}  no: {row['problem']}")
            continue
        size, age = row["bytes"] / 1e6, row["age_seconds"]
        state, digest = "yes" if row["verified"] else f"no: {row['problem']}", row["weights_sha256"] or ""
        print(f"{row['name']:<16}{row['images'] / 1000:>10.1f}{size:>9.1f}{age:>9.0f}s  {state:<7}{digest}")
    for change in rows[-1]["changes"]:
        print(f"changed after step {change['step']}: {'; '.join(change['changes'])}")
    return code


def _row(name: str, checkpoint: Checkpoint | None, problem: str | None, meter: Meter) -> dict[str, Any]:
    from gfgw_prod.weights.digest import weights_digest

    row: dict[str, Any] = {"name": name, "step": None, "images": None, "age_seconds": None, "bytes": None}
    row |= {"verified": False, "problem": problem, "weights_sha256": None, "changes": []}
    if checkpoint is None:
        return row
    problem = checkpoint.problem(on_bytes=meter.advance)
    return row | {
        "step": checkpoint.step,
        "images": checkpoint.images,
        "age_seconds": round(time.time() - checkpoint.manifest["saved_at"], 1),
        "bytes": checkpoint.bytes,
        "verified": problem is None,
        "problem": problem,
        "weights_sha256": weights_digest(checkpoint.read_tensors("generator.", "ema.")) if problem is None else None,
        "changes": checkpoint.manifest["changes"],
    }
