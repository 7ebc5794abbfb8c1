"""Copies of the repository like a fresh clone, with the environment of the tests and a short digits run."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import yaml

from . import runs

PARTS = ("gfgw_prod", "configs", "launch", "docker", "Makefile", "pyproject.toml", "requirements.lock", "README.md")
SHORT = {
    "generator": {"model_channels": 8, "channel_mult": [1]},
    "train": {"total_kimg": 24},
    "checkpoint": {"every_kimg": 4},
    "evaluation": {"every_kimg": 0, "num": 200},
}


def clone(directory: Path) -> tuple[Path, dict[str, str]]:
    """Copy the repository. Returns the copy, and the environment in which commands run its code."""
    directory.mkdir()
    for name in PARTS:
        source = runs.ROOT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, directory / name)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        os.utime(directory / name, (0, 0))  # older than the environment, so that make does not rebuild it
    (directory / ".venv").symlink_to(sys.prefix)
    config = directory / "configs" / "digits.yaml"
    settings = yaml.safe_load(config.read_text())
    for section, changes in SHORT.items():
        settings[section] |= changes
    config.write_text(yaml.safe_dump(settings))
    return directory, runs.environment({"PYTHONPATH": str(directory)})
