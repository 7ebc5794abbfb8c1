"""The wheel trains by itself: presets and launch scripts are in it, and it needs no clone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from . import runs

SHORT = (
    *("--train.total-kimg", "0.256", "--evaluation.every-kimg", "0"),
    *("--generator.model-channels", "8", "--telemetry.progress", "off"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the locked backend and installed into a directory without a network."""
    place = tmp_path_factory.mktemp("wheel")
    for command in (
        (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place / "dist")),
        (
            *(str(Path(sys.executable).with_name("uv")), "pip", "install", "--offline", "--no-deps", "--quiet"),
            *("--python", sys.executable, "--target", str(place / "packages")),
            str(place / "dist" / "gfgw_prod-0.1.0-py3-none-any.whl"),
        ),
    ):
        done = subprocess.run(
            command, cwd=runs.ROOT, env=runs.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    return place / "packages"


def test_wheel_trains_the_default_preset_in_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    extra = {"PYTHONPATH": str(installed)}
    where = (sys.executable, "-c", "import gfgw_prod; print(gfgw_prod.__file__)")
    assert runs.execute(where, extra, tmp_path).stdout.strip() == f"{installed}/gfgw_prod/__init__.py"
    trained = runs.execute((*runs.GFGW, "train", *SHORT), extra, tmp_path, anew=True)
    assert trained.code == 0, trained.stderr
    assert (tmp_path / "runs/digits/samples.png").is_file()


def test_launch_script_of_the_wheel_trains_a_preset(installed: Path, tmp_path: Path) -> None:
    script = str(installed / "gfgw_prod/launch/elastic.sh")
    trained = runs.execute(
        (script, "--config", "digits", *SHORT), {"PYTHONPATH": str(installed), "NPROC": "1"}, tmp_path
    )
    assert trained.code == 0, trained.stderr
    assert (tmp_path / "runs/digits/samples.png").is_file()


def test_unknown_preset_is_refused_in_one_line(installed: Path, tmp_path: Path) -> None:
    refused = runs.execute((*runs.GFGW, "train", "--config", "digit"), {"PYTHONPATH": str(installed)}, tmp_path)
    assert "presets are cifar10, digits, imagenet64, pictures" in refused.complaint
