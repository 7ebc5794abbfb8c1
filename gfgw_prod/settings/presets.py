"""The configurations that ship with the package, by name."""

from __future__ import annotations

import os
from pathlib import Path

from gfgw_prod.process.exit_codes import UserError

DEFAULT = "digits"  # without a file of settings
_PACKAGE = Path(__file__).parents[1]
_IN_WHEEL, _IN_CLONE = _PACKAGE / "presets", _PACKAGE.parent / "configs"


def presets() -> dict[str, Path]:
    """The files of the presets, by name."""
    folder = _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_CLONE
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def settings_file(text: str = "") -> Path:
    """The file that ``text`` means: a preset if a bare word and no file, else a path; ``UserError`` if neither.

    Nothing means the preset ``digits``.
    """
    if not text:
        return presets()[DEFAULT]
    path = Path(text)
    if path.suffix or os.sep in text or (os.path.lexists(path) and not os.path.isdir(path)):
        return path
    known = presets()
    if text not in known:
        raise UserError(f"no file and no preset {text[:100]!r}; presets are {', '.join(known)}")
    return known[text]
