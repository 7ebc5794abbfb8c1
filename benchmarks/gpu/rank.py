"""``python -m benchmarks.gpu.rank train ...``: one of two ranks that share a GPU, over gloo, as NCCL refuses that."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist

from gfgw_prod.commands.cli import main
from gfgw_prod.distributed import world

start = dist.init_process_group


def init_over_gloo(backend: str, *, device_id: Any = None, **options: Any) -> None:
    start("gloo", **options)


dist.init_process_group = init_over_gloo  # type: ignore[assignment]
if torch.cuda.is_available():
    world.choose_device = lambda *_: torch.device("cuda", 0)

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
