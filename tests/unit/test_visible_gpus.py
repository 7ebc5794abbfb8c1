"""How many ranks start on the visible GPUs, and on which device they compute."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist

from gfgw_prod.commands.doctor.host import MOST_RANKS
from gfgw_prod.distributed.devices import choose_device, require_same_device_type
from gfgw_prod.distributed.torchrun import RankEnvironment
from gfgw_prod.process.exit_codes import BAD_INPUT, UserError
from gfgw_prod.settings.presets import settings_file
from gfgw_prod.settings.reading import read_yaml, resolve

ELASTIC = Path(__file__).parents[2] / "launch" / "elastic.sh"
WHOLE = [f"GPU {index}: A (UUID: GPU-{index}a5c)" for index in range(8)]
SPLIT = [WHOLE[0], "  MIG 1g.5gb Device 0: (UUID: MIG-51)", "  MIG 1g.5gb Device 1: (UUID: MIG-52)"]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def launched(directory: Path, listed: list[str], visible: str | None) -> subprocess.CompletedProcess[str]:
    """Run the launch script with an ``nvidia-smi`` that lists GPUs and fails, and a Python that prints its words."""
    (directory / "list").write_text("".join(f"{line}\n" for line in listed))
    for name, script in (("nvidia-smi", f"cat {directory}/list; exit 14"), ("python", 'echo "$@"')):
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    variables = {name: value for name, value in os.environ.items() if name not in ("NPROC", "CUDA_VISIBLE_DEVICES")}
    variables |= {"PATH": f"{directory}:{os.environ['PATH']}", "PYTHON": str(directory / "python")}
    variables |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return subprocess.run([ELASTIC], env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("listed", "visible", "ranks"),
    [
        (WHOLE, None, 8),
        (WHOLE, "0,1", 2),
        (WHOLE, " 7 , 3", 2),
        (WHOLE, "0,1,-1,2", 2),
        (WHOLE, "GPU-2a5c,GPU-3", 2),
        (SPLIT, None, 1),
        ([*SPLIT, *WHOLE[1:]], None, 7),
        (SPLIT, "MIG-52,MIG-51", 1),  # CUDA shows one instance at most
    ],
)
def test_a_rank_starts_on_each_visible_gpu(tmp_path: Path, listed: list[str], visible: str | None, ranks: int) -> None:
    assert f" --nproc-per-node {ranks} " in launched(tmp_path, listed, visible).stdout


@pytest.mark.parametrize(("listed", "visible"), [(WHOLE, ""), (WHOLE, "-1"), (WHOLE, "NoDevFiles"), ([], "0,1,2")])
def test_without_a_visible_gpu_a_rank_per_core_starts(tmp_path: Path, listed: list[str], visible: str) -> None:
    ranks = min(MOST_RANKS, len(os.sched_getaffinity(0)))
    assert f" --nproc-per-node {ranks} " in launched(tmp_path, listed, visible).stdout


@pytest.mark.parametrize("name", ["digits", "pictures", "pictures_network", "cifar10", "imagenet64", "seed_report"])
def test_presets_have_a_cell_for_each_rank_that_starts_without_a_gpu(name: str) -> None:
    assert resolve(read_yaml(settings_file(name))).cells >= MOST_RANKS


@pytest.mark.parametrize("visible", ["8", "0,8", "0,0", "GPU-9", "MIG-51", "0x1"])
def test_gpu_that_is_not_there_is_refused(tmp_path: Path, visible: str) -> None:
    refused = launched(tmp_path, WHOLE, visible)
    assert (refused.returncode, refused.stdout) == (BAD_INPUT, "")
    assert refused.stderr == (
        f"elastic.sh: CUDA_VISIBLE_DEVICES must name different GPUs of nvidia-smi -L, not '{visible}'\n"
    )


def test_cpu_is_chosen_only_where_there_is_no_gpu() -> None:
    last_of_four = RankEnvironment(rank=3, world_size=4, local_rank=3, local_world_size=4)
    assert choose_device("auto", last_of_four, gpus=4) == torch.device("cuda", 3)
    assert choose_device("auto", last_of_four, gpus=0) == CPU
    assert choose_device("cpu", last_of_four, gpus=1) == CPU
    refused: list[tuple[Literal["auto", "cuda"], int]] = [("auto", 1), ("auto", 3), ("cuda", 0), ("cuda", 3)]
    for device, gpus in refused:
        with pytest.raises(UserError, match=rf"^run\.device {device}: 4 ranks on this node see {gpus} GPUs; "):
            choose_device(device, last_of_four, gpus)


def test_ranks_agree_on_gpus_or_the_cpu() -> None:
    store = dist.HashStore()
    store.set("device/1", "cpu on host b")
    require_same_device_type(store, 0, 2, CPU)
    store.set("device/2", "cuda on host c")
    with pytest.raises(UserError, match=r"run\.device: rank 0 chose cpu on host .*, and rank 2 cuda on host c; "):
        require_same_device_type(store, 0, 3, CPU)
    store.set("device/1", "cuda on host b")
    require_same_device_type(store, 0, 3, GPU)
