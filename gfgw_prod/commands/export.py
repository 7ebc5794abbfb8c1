"""The command ``export``: a trained generator as one file for other programs."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from gfgw_prod.process.durable import write_whole
from gfgw_prod.process.exit_codes import FINISHED, UserError
from gfgw_prod.sampling.trained import read_trained, to_safetensors


def export_generator(place: str, form: str, out: Path, *, raw: bool) -> int:
    """Writes the generator as ``safetensors`` (weights) or ``onnx`` (the one-step sampler), whole or not at all.

    Raises:
        UserError: if there is no good checkpoint, or ``out`` cannot be written.
    """
    trained = read_trained(place, raw=raw)
    final = _destination(out)
    torch.set_num_threads(trained.settings.run.threads)
    checked = ""
    if form == "onnx":
        from gfgw_prod.sampling.onnx_graph import to_onnx

        content, difference = to_onnx(trained)
        checked = f", images within {difference:.1e} of torch's"
    else:
        content = to_safetensors(trained)
    _write(content, final, out)
    kind = {"ema": "averaged weights", "raw": "weights as trained"}[trained.weights]
    print(f"{out}: {kind} of step {trained.step} ({trained.images} images), {len(content) / 1e6:.1f} MB{checked}")
    return FINISHED


def _destination(out: Path) -> Path:
    """Where to write: known to be no directory, device or pipe before the work begins. A link leads to its target."""
    final = Path(os.path.realpath(out))
    try:
        if final.is_dir():
            raise UserError(f"--out {out} is a directory; name a file")
        if final.is_symlink():  # nothing else stays one
            raise UserError(f"--out {out} is a loop of links; name a file")
        if final.exists() and not final.is_file():
            raise UserError(f"--out {out} is not a regular file; name another")
        final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror})") from None
    if not os.access(final.parent, os.W_OK | os.X_OK):
        raise UserError(f"--out {out} cannot be written (Permission denied)")
    return final


def _write(content: bytes, final: Path, out: Path) -> None:
    try:
        write_whole(final, content)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror})") from None
