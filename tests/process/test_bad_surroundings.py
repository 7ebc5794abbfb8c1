"""A machine that cannot do what the settings say: one line that names the setting, exit code 2."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ..image_files import write_folder
from . import runs


def test_read_only_run_directory_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "read-only"
    place.mkdir()
    command = runs.training(place)
    if os.geteuid() == 0:  # permission bits do not bind root, a read-only file system does
        mounted = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro none "$0" && exec "$@"', str(place)]
        if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], check=False, timeout=20).returncode:
            pytest.skip("root without the right to mount: no directory is read-only for it")
        command = [*mounted, *command]
    else:
        place.chmod(0o555)
    complaint = runs.execute(command).complaint
    assert complaint.startswith("gfgw: ")
    assert f"run.dir {place}" in complaint


def test_gpu_is_refused_where_there_is_none(tmp_path: Path) -> None:
    command = runs.training(tmp_path / "run", "--run.device", "cuda")
    complaint = runs.execute(command, {"CUDA_VISIBLE_DEVICES": ""}).complaint
    assert complaint.startswith("gfgw: run.device cuda")


def test_missing_shared_memory_is_named_with_the_setting_that_needs_none(tmp_path: Path) -> None:
    without = [
        "unshare",
        "--mount",
        "--map-root-user",
        "sh",
        "-c",
        'mount -t tmpfs -o ro none /dev/shm && exec "$@"',
        "",
    ]
    if shutil.which("unshare") is None or subprocess.run([*without, "true"], check=False, timeout=20).returncode:
        pytest.skip("no right to mount a read-only /dev/shm")
    source = write_folder(tmp_path / "images", np.zeros((4, 3, 8, 8), np.uint8), [0, 1, 0, 1])
    pack = [*runs.GFGW, "pack", str(tmp_path / "pack"), "--data.source", "folder", "--data.path", str(source)]
    train = runs.training(tmp_path / "run", steps=1)
    for command, option in (([*pack, "--workers"], "--workers"), ([*train, "--data.workers"], "data.workers")):
        refused = runs.execute([*without, *command, "1"]).complaint
        assert refused.startswith(f"gfgw: {option}")
        assert "/dev/shm: Read-only file system" in refused
        assert f"{option} 0" in refused
        assert runs.execute([*without, *command, "0"]).code == 0
    assert "/dev/shm: Read-only" in runs.execute([*without, *runs.GFGW, "doctor"]).stdout
