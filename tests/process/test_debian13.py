"""Debian 13 brings Python 3.13: the wheel, installed there with the locked packages, trains the same weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from . import debian, runs

RELEASE, FREE_GB = "trixie", 8
TRAIN = (
    *("--config", "digits", "--run.dir", "run", "--train.total-kimg", "0.512", "--evaluation.every-kimg", "0"),
    *("--telemetry.progress", "off"),
)
# Mounts end with the process. Packages are linked from the cache of this machine, not copied.
ENTER = """
set -e
mount --rbind /proc "$1/proc"
mount --rbind /dev "$1/dev"
mkdir -p "$1/$2"
mount --bind "$2" "$1/$2"
exec chroot "$1" /bin/sh -ec "cd /work; $3"
"""
INSTALL = (
    "python3 -m venv --without-pip venv; "
    "./uv pip install --quiet --link-mode symlink --python venv/bin/python --require-hashes -r runtime.lock; "
    "./uv pip install --quiet --python venv/bin/python --no-deps ./*.whl"
)


class Debian:
    """A minimal Debian 13 in a directory, with a folder /work."""

    def __init__(self, root: Path):
        self.root, self.work = root, root / "work"
        uv = Path(sys.executable).with_name("uv")
        self.cache = subprocess.run((uv, "cache", "dir"), capture_output=True, text=True, check=True).stdout.strip()
        debian.bootstrap(RELEASE, root, "--include=python3,python3-venv,ca-certificates")
        self.work.mkdir()
        wheel = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(self.work))
        self._do(*wheel)
        for file in (uv, runs.ROOT / "docker" / "runtime.lock"):
            shutil.copy(file, self.work)
        shutil.copy("/etc/resolv.conf", root / "etc")
        for name in ("PIP_CONFIG_FILE", "SSL_CERT_FILE"):  # of a machine behind a proxy
            if place := os.environ.get(name):
                (root / place.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(place, root / place.lstrip("/"))

    def run(self, command: str) -> str:
        """Run a shell command in /work; returns its output."""
        Path(self.cache).mkdir(parents=True, exist_ok=True)
        private = ("unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh")
        return self._do(*private, str(self.root), self.cache, command)

    def _do(self, *command: str) -> str:
        done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command[0]}: {done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def debian13(tmp_path_factory: pytest.TempPathFactory) -> Debian:
    debian.require("debootstrap", ("debootstrap", "unshare"), ("debootstrap",), needs_root=True)
    directory = tmp_path_factory.mktemp("debian")
    if shutil.disk_usage(directory).free < FREE_GB * 1e9:
        pytest.skip(f"another environment takes {FREE_GB} GB")
    return Debian(directory / "root")


@pytest.mark.timeout(900)
def test_wheel_on_debian_13_trains_the_same_weights(debian13: Debian, tmp_path: Path) -> None:
    debian13.run(INSTALL)
    version = debian13.run("venv/bin/python -c 'import sys; print(sys.version_info[:2])'").strip()
    assert version == "(3, 13)" != str(sys.version_info[:2])
    debian13.run(f"OMP_NUM_THREADS=1 venv/bin/gfgw train {' '.join(TRAIN)}")
    there = json.loads(debian13.run("venv/bin/gfgw inspect run --json"))["checkpoints"]
    here = runs.execute((*runs.GFGW, "train", *TRAIN), cwd=tmp_path)
    assert here.code == 0, here.stderr
    assert [each["weights_sha256"] for each in there] == list(runs.digests(tmp_path / "run").values())
    assert there


def test_failed_download_is_repeated_twice(tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    debian.attempt(("sh", "-c", f'echo >>"{tries}"; [ "$(wc -l <"{tries}")" = 3 ]'))
    assert tries.read_text() == "\n\n\n"
    with pytest.raises(AssertionError, match="exit code 1: false"):
        debian.attempt(("false",))
