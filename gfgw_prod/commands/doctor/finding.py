"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One check: ``ok``, ``note`` (works, with less) or ``bad`` (would fail); and what to do, unless it is ``ok``."""

    check: str
    state: Literal["ok", "note", "bad"]
    detail: str
    advice: str = ""
