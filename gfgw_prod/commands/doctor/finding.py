"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The result of a check: ``ok``, ``note`` (works, but worse) or ``bad`` (would fail); with advice unless ``ok``."""

    check: str
    state: Literal["ok", "note", "bad"]
    detail: str
    advice: str = ""
