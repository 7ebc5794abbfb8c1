"""A run's own file of all its settings: its name, what is recorded in it, and what later starts take from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.config import Config, shares_by_section
from gfgw_prod.settings.reading import read_yaml, resolve
from gfgw_prod.settings.running import CheckpointSettings

FILE = "config.yaml"
BESIDE = "config.resolved.yaml"  # where a person's own file has that name


def file_to_write(run_dir: Path) -> Path:
    """Where the run may write its settings: it never replaces a file that no run has written."""
    return run_dir / (BESIDE if os.path.isfile(run_dir / BESIDE) or _is_written_by_hand(run_dir / FILE) else FILE)


def file_to_read(run_dir: Path) -> Path:
    """Where the run's settings are."""
    return run_dir / (BESIDE if os.path.isfile(run_dir / BESIDE) else FILE)


def recorded(config: Config) -> Config:
    """The configuration for the file: ``checkpoint.root`` is found from anywhere, and inside a copied run."""
    root = config.checkpoint.root
    if not root or "://" in root:
        return config
    inside = os.path.relpath(root, config.run.dir)
    root = os.path.abspath(root) if _leaves(inside) else str(config.run.dir / inside)
    return config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"root": root})})


def checkpoint_settings(run_dir: Path) -> CheckpointSettings:
    """The section ``checkpoint`` of the run's file, or the default; ``root`` as it is for this place of the run.

    Args:
        run_dir: absolute path, which differs from the recorded ``run.dir`` if the run was copied or moved.
    """
    try:
        content = read_yaml(file_to_read(run_dir))
        config = resolve({name: content.get(name, {}) for name in ("run", "checkpoint")})
    except UserError:  # missing, or of another version
        return CheckpointSettings()
    root, recorded_dir = config.checkpoint.root, config.run.dir
    if root and "://" not in root and os.path.isabs(root) == recorded_dir.is_absolute():
        inside = os.path.relpath(root, recorded_dir)
        if not (os.path.isabs(root) and _leaves(inside)):
            root = os.path.normpath(run_dir / inside)
    return config.checkpoint.model_copy(update={"root": root})


def resumable(*layers: Mapping[str, Any]) -> Config:
    """``resolve`` the layers. Lengths that none of them sets are those of the run in ``run.dir``, if there is one.

    So ``train.total_kimg`` may make a run longer, and its schedules stay those that it began with.
    """
    config = resolve(*layers)
    try:
        if not (config.checkpoint.root or os.listdir(config.run.dir / "checkpoints")):
            return config
        began = read_yaml(file_to_read(config.run.dir))
    except (OSError, UserError):  # a new run
        return config
    kept: dict[str, Any] = {}
    for section, names in shares_by_section().items():
        own = began.get(section)
        kept[section] = {n: own[n] for n in names if n in own} if isinstance(own, dict) else {}
    return resolve(kept, *layers)


def _leaves(relative: str) -> bool:
    """Whether a relative path leads out of its directory."""
    return Path(relative).parts[:1] == ("..",)


def _is_written_by_hand(path: Path) -> bool:
    """Whether a file is not just every setting in the form of ``as_yaml``, so that a run must not replace it."""
    if not os.path.lexists(path):
        return False
    try:
        content = read_yaml(path)
        same_form = yaml.safe_dump(content, sort_keys=False) == path.read_text(encoding="utf-8")
    except (OSError, UserError):
        return True
    return not (same_form and content.keys() >= Config.model_fields.keys())
