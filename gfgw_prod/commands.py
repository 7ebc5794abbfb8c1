"""The commands that look at a run: ``sample`` and ``inspect``."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from gfgw_prod.checkpoint.digest import weights_digest
from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.checkpoint.run_directory import listed
from gfgw_prod.resilience.exit_codes import BAD_INPUT, FINISHED, UserError

MOST_SAMPLES = 1_000_000  # they are in memory together


def inspect_checkpoints(place: str, *, verify: bool, as_json: bool) -> int:
    """Prints every checkpoint's step, images, age, size, whether it is whole or why not, and its weights' digest.

    With ``verify``, returns 2 if any is damaged.

    Raises:
        UserError: if there is none.
    """
    rows = [_row(name, checkpoint, problem) for name, checkpoint, problem in listed(place)]
    code = BAD_INPUT if verify and not all(row["verified"] for row in rows) else FINISHED
    if as_json:
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


def _row(name: str, checkpoint: Checkpoint | None, problem: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "step": None, "images": None, "age_seconds": None, "bytes": None}
    row |= {"verified": False, "problem": problem, "weights_sha256": None, "changes": []}
    if checkpoint is None:
        return row
    problem = checkpoint.problem()
    return row | {
        "step": checkpoint.step,
        "images": checkpoint.images,
        "age_seconds": round(time.time() - checkpoint.manifest["saved_at"], 1),
        "bytes": checkpoint.bytes,
        "verified": problem is None,
        "problem": problem,
        "weights_sha256": weights_digest(checkpoint.tensors("generator.", "ema.")) if problem is None else None,
        "changes": checkpoint.manifest["changes"],
    }


def sample_images(place: str, count: int, out: Path, *, seed: int, grid: bool, raw: bool) -> int:
    """Writes ``count`` one-step samples as PNG files, or as one grid.

    Raises:
        UserError: if there is no good checkpoint, or ``out`` cannot be written.
    """
    import torch

    from gfgw_prod import samples
    from gfgw_prod.trained import read_trained

    if not 1 <= count <= MOST_SAMPLES:
        raise UserError(f"--num must be at least 1 and at most {MOST_SAMPLES:,}, not {count}")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed must be between 0 and 2**63 - 1, not {seed}")
    trained = read_trained(place, raw=raw)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made a directory ({error.strerror})") from None

    torch.set_num_threads(trained.settings.run.threads)
    images, _ = samples.draw_samples(
        trained.build(),
        trained.image_shape,
        trained.num_classes,
        count=count,
        seed=seed,
        stream="sample",
        device=torch.device("cpu"),
    )
    try:
        if grid:
            columns = max(round(count**0.5), 1)
            samples.write_png(samples.grid_of(images, columns), out / "grid.png")
        else:
            for index, image in enumerate(samples.to_bytes(images)):
                samples.write_png(image, out / f"{index:06d}.png")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror})") from None
    print(out / "grid.png" if grid else f"{count} images in {out}")
    return FINISHED


def program(name: str) -> str:
    """How to call a program of this environment from here: its path, unless it is on the search path anyway."""
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(beside) or not beside.exists():
        return name
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
