"""The commands that look at a run: ``sample`` and ``inspect``."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from gfgw_prod.resilience import checkpoint
from gfgw_prod.resilience.exit_codes import BAD_INPUT, FINISHED, UserError


def find_checkpoints(place: Path) -> list[checkpoint.Checkpoint]:
    """Checkpoints of a run directory, or the one that ``place`` is.

    Raises:
        UserError: if there is none.
    """
    # The functions of os.path take loops of links and names that are too long for what is not there.
    place = Path(os.path.realpath(place))
    itself = checkpoint.read(place)
    found = [itself] if itself is not None else checkpoint.checkpoints(place) if os.path.isdir(place) else []
    if not found:
        raise UserError(f"{place} holds no checkpoint; name a run directory or one of its checkpoints/step-*")
    return found


def inspect_checkpoints(place: Path, *, verify: bool, as_json: bool) -> int:
    """Prints every checkpoint's step, images, age, size, whether its hashes match, and the digest of its weights.

    With ``verify``, returns 2 if any is damaged.
    """
    rows: list[dict[str, Any]] = []
    for found in find_checkpoints(place):
        problem = found.problem()
        digest = None
        if problem is None:
            digest = checkpoint.weights_digest(found.tensors("generator.", "ema."))
        rows.append(
            {
                "name": found.path.name,
                "step": found.step,
                "images": found.images,
                "age_seconds": round(time.time() - found.manifest["saved_at"], 1),
                "bytes": sum(entry["bytes"] for entry in found.manifest["files"].values()),
                "verified": problem is None,
                "problem": problem,
                "weights_sha256": digest,
                "changes": found.manifest["changes"],
            }
        )
    code = BAD_INPUT if verify and not all(row["verified"] for row in rows) else FINISHED
    if as_json:
        print(json.dumps({"checkpoints": rows}, indent=1))
        return code
    print(f"{'checkpoint':<16}{'kimg':>10}{'MB':>9}{'age':>10}  {'whole':<7}weights_sha256")
    for row in rows:
        size, age = row["bytes"] / 1e6, row["age_seconds"]
        state, digest = "yes" if row["verified"] else f"no: {row['problem']}", row["weights_sha256"] or ""
        print(f"{row['name']:<16}{row['images'] / 1000:>10.1f}{size:>9.1f}{age:>9.0f}s  {state:<7}{digest}")
    for change in rows[-1]["changes"]:
        print(f"changed after step {change['step']}: {'; '.join(change['changes'])}")
    return code


def sample_images(place: Path, count: int, out: Path, *, seed: int, grid: bool, raw: bool) -> int:
    """Writes ``count`` one-step samples as PNG files, or as one grid.

    Raises:
        UserError: if there is no good checkpoint, or ``out`` cannot be written.
    """
    import torch

    from gfgw_prod import samples
    from gfgw_prod.trained import read_trained

    if count < 1:
        raise UserError(f"--num must be at least 1, not {count}")
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
