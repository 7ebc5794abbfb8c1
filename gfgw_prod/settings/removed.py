"""Removed settings, so that checkpoints and exported generators that name them still load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Setting: the values under which a run is the same today, or None for any. Another value is refused as unknown.
REMOVED: dict[str, tuple[Any, ...] | None] = {
    "consistency.ratio": (2.0,),
    "distributed.sync_each_turn": (False, True),  # it changed no weight
    "evaluation.seed": (0,),
    "features.views": (1,),
    "generator.exact_boundary": (True,),
    "loss.boundary": None,  # it had no effect where the boundary was exact
    "time.freedom": (4,),
    "transport.anneal_from": (None,),
    "transport.marginal": ("balanced",),
}


def without_removed(recorded: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Copy a recorded configuration without the removed settings that make no difference."""
    kept: dict[str, Any] = {}
    for key, value in recorded.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            kept[key] = without_removed(value, f"{name}.")
        elif (same := REMOVED.get(name, ())) is not None and value not in same:
            kept[key] = value
    return kept
