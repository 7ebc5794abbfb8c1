"""A machine that cannot do what the settings say: one line that names the setting, exit code 2."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

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
