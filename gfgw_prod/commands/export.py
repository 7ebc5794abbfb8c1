"""The command ``export``: a trained generator as one file for other programs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from gfgw_prod.commands.options import add_place, add_raw, path
from gfgw_prod.process.durable import write_whole
from gfgw_prod.process.exit_codes import FINISHED, UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``export``."""
    add_place(parser)
    parser.add_argument(
        "--format",
        choices=("safetensors", "onnx"),
        required=True,
        help="safetensors: weights and settings, for gfgw_prod.load_generator; onnx: noise in, images out",
    )
    parser.add_argument(
        "--out", type=path, required=True, metavar="FILE", help="file to write; it appears only once it is complete"
    )
    add_raw(parser)


def run(options: argparse.Namespace) -> int:
    """Write the generator as ``safetensors`` (weights) or ``onnx`` (the one-step sampler); return the exit code."""
    import torch

    from gfgw_prod.sampling.trained import read_trained, to_safetensors

    trained = read_trained(options.place, raw=options.raw)
    final = _destination(options.out)
    torch.set_num_threads(trained.settings.run.threads)
    checked = ""
    if options.format == "onnx":
        from gfgw_prod.sampling.onnx_graph import to_onnx

        content, difference = to_onnx(trained)
        checked = f", images within {difference:.1e} of torch's"
    else:
        content = to_safetensors(trained)
    try:
        write_whole(final, content)
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be written ({error.strerror})") from None
    what = f"{trained.kind_of_weights} of step {trained.step} ({trained.images} images)"
    print(f"{options.out}: {what}, {len(content) / 1e6:.1f} MB{checked}")
    return FINISHED


def _destination(out: Path) -> Path:
    """The regular file to write, links resolved; refused before the work begins if it cannot be one."""
    final = Path(os.path.realpath(out))
    try:
        if final.is_dir():
            raise UserError(f"--out {out} is a directory; name a file")
        if final.is_symlink():  # realpath resolves every other link
            raise UserError(f"--out {out} is a loop of links; name a file")
        if final.exists() and not final.is_file():
            raise UserError(f"--out {out} is not a regular file; name another")
        final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror})") from None
    if not os.access(final.parent, os.W_OK | os.X_OK):
        raise UserError(f"--out {out} cannot be written (Permission denied)")
    return final
