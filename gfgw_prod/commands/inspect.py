"""The command ``inspect``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfgw_prod.commands.options import add_json, add_place
from gfgw_prod.process.exit_codes import BAD_INPUT, FINISHED, UserError

if TYPE_CHECKING:
    from gfgw_prod.checkpoint.reading import Checkpoint
    from gfgw_prod.process.meter import Meter
    from gfgw_prod.resilience.run_status import RunStatus


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``inspect``."""
    add_place(parser, "run directory, one of its checkpoints, or a directory of runs")
    parser.add_argument("--verify", action="store_true", help="leave with exit code 2 if any is damaged")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print step, images, age, size, state and weights' digest of every checkpoint; return the exit code.

    For a directory of runs, print how each run stands.
    """
    from gfgw_prod.checkpoint.finding import entries_at, list_checkpoints
    from gfgw_prod.process.meter import MB, Meter
    from gfgw_prod.resilience.run_status import is_run, runs_in, status_of

    place = Path(options.place)
    if runs := runs_in(place):
        if options.verify:
            raise UserError(f"--verify takes one run or checkpoint; {place} is a directory of runs")
        _print_runs([status_of(path) for path in runs], as_json=options.json)
        return FINISHED
    run = status_of(place) if is_run(place) else None
    begins = run is not None and not options.verify  # perhaps before its first checkpoint
    found = entries_at(options.place) if begins else list_checkpoints(options.place)
    total = sum(checkpoint.bytes for _, checkpoint, _ in found if checkpoint is not None)
    with Meter(f"checking {options.place}", total, "MB", scale=MB) as meter:
        rows = [_row(name, checkpoint, problem, meter) for name, checkpoint, problem in found]
    code = BAD_INPUT if options.verify and not all(row["verified"] for row in rows) else FINISHED
    if options.json:
        print(json.dumps({"checkpoints": rows, "run": None if run is None else asdict(run)}, indent=1))
        return code
    if rows:
        print(f"{'checkpoint':<16}{'kimg':>10}{'MB':>9}{'age':>10}  {'whole':<7}weights_sha256")
    for row in rows:
        if row["bytes"] is None:
            print(f"{row['name']:<16}{'':>29}  no: {row['problem']}")
            continue
        size, age = row["bytes"] / 1e6, row["age_seconds"]
        state, digest = "yes" if row["verified"] else f"no: {row['problem']}", row["weights_sha256"] or ""
        print(f"{row['name']:<16}{row['images'] / 1000:>10.1f}{size:>9.1f}{age:>9.0f}s  {state:<7}{digest}")
    for change in rows[-1]["changes"] if rows else ():
        print(f"changed after step {change['step']}: {'; '.join(change['changes'])}")
    if run is not None:
        print(f"the run: {_in_words(run)}{'' if rows else '; no checkpoint yet'}")
    return code


def _print_runs(runs: Sequence[RunStatus], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"runs": [asdict(run) for run in runs]}, indent=1))
        return
    width = max(len(run.name) for run in runs)
    print(f"{'run':<{width}}  {'state':<9}{'step':>11}{'kimg':>12}{'of':>10}{'left':>8}{'record':>9}{'fd':>9}  in")
    for run in runs:
        kimg, planned = (None if images is None else images / 1000 for images in (run.images, run.planned_images))
        print(
            f"{run.name:<{width}}  {run.state:<9}{_number(run.step, ','):>11}{_number(kimg, ',.1f'):>12}"
            f"{_number(planned, ',.0f'):>10}{_time(run.eta_seconds):>8}{_time(run.record_age_seconds):>9}"
            f"{_number(run.fd, '.3g'):>9}  {run.fd_in}".rstrip()
        )


def _in_words(run: RunStatus) -> str:
    if run.step is None or run.images is None or run.planned_images is None:
        return run.state
    left = "" if run.eta_seconds is None else f", about {_time(run.eta_seconds)} left"
    fd = "" if run.fd is None else f", fd {run.fd:.3g}" + (f" ({run.fd_in})" if run.fd_in else "")
    at = f"step {run.step:,}, {run.images / 1000:,.1f} of {run.planned_images / 1000:,.1f} kimg"
    return f"{run.state}, {at}{left}{fd}; last record {_time(run.record_age_seconds)} ago"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _time(seconds: float | None) -> str:
    """A time in its largest sensible unit."""
    if seconds is None:
        return "-"
    unit, size = next(((u, s) for u, s in (("d", 86400), ("h", 3600), ("min", 60)) if seconds >= 2 * s), ("s", 1))
    return f"{seconds / size:.0f} {unit}"


def _row(name: str, checkpoint: Checkpoint | None, problem: str | None, meter: Meter) -> dict[str, Any]:
    from gfgw_prod.weights.digest import weights_digest

    row: dict[str, Any] = {"name": name, "step": None, "images": None, "age_seconds": None, "bytes": None}
    row |= {"verified": False, "problem": problem, "weights_sha256": None, "changes": [], "start": None}
    if checkpoint is None:
        return row
    problem = checkpoint.problem(on_bytes=meter.advance)
    return row | {
        "start": checkpoint.manifest.get("start"),
        "step": checkpoint.step,
        "images": checkpoint.images,
        "age_seconds": round(time.time() - checkpoint.manifest["saved_at"], 1),
        "bytes": checkpoint.bytes,
        "verified": problem is None,
        "problem": problem,
        "weights_sha256": weights_digest(checkpoint.read_tensors("generator.", "ema.")) if problem is None else None,
        "changes": checkpoint.manifest["changes"],
    }
