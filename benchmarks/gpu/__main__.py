"""``python -m benchmarks.gpu [--out FILE] [--small] [PART ...]``: check and measure this machine's GPU in 8 minutes.

Prints one table and a verdict, and keeps the table as JSON. On a CPU, sizes are small: that tests the check itself.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.check import Place, run_parts, write
from benchmarks.gpu.parts import PARTS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; by default all")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="file for the rows")
    parser.add_argument("--small", action="store_true", help="small sizes also on a GPU")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]}; there are: {', '.join(PARTS)}")
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    with tempfile.TemporaryDirectory(prefix="gfgw-gpu-") as directory:
        place = Place(device, options.small or not on_gpu, Path(directory))
        chosen = {name: PARTS[name] for name in options.parts or PARTS}
        rows = run_parts(chosen, place, lambda row: print(row, flush=True))
    write(rows, options.out)
    checked = [row.good for row in rows if row.good is not None]
    failed = checked.count(False)
    print(f"{'FAILED' if failed else 'passed'}: {failed} of {len(checked)} checks failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
