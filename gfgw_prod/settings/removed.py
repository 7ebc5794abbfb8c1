"""Settings that are gone, so that runs and generators of before still load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Name: the value that every run has had since. A recorded configuration with another value is refused as unknown.
REMOVED: dict[str, Any] = {
    "transport.anneal_from": None,
    "transport.marginal": "balanced",
}


def without_removed(recorded: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A copy of a recorded configuration without removed settings that had the value that is now the only one."""
    kept: dict[str, Any] = {}
    for key, value in recorded.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            kept[key] = without_removed(value, f"{name}.")
        elif name not in REMOVED or REMOVED[name] != value:
            kept[key] = value
    return kept
