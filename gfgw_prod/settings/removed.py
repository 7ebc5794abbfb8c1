"""Removed settings, so that checkpoints and exported generators that name them still load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Setting: the value that is now built in. A recorded configuration with another value is refused as unknown.
REMOVED: dict[str, Any] = {
    "distributed.sync_each_turn": False,
    "evaluation.seed": 0,
    "transport.anneal_from": None,
    "transport.marginal": "balanced",
}


def without_removed(recorded: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Copy a recorded configuration without the removed settings that have their built-in value."""
    kept: dict[str, Any] = {}
    for key, value in recorded.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            kept[key] = without_removed(value, f"{name}.")
        elif name not in REMOVED or REMOVED[name] != value:
            kept[key] = value
    return kept
