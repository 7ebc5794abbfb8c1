"""Refuses to go on with a run whose trajectory the new settings or data would change."""

from __future__ import annotations

from typing import Any

from gfgw_prod.resilience.exit_codes import UserError

# Settings that leave every weight as it is: where things are kept, what is reported, how the work is spread.
FREE = frozenset(
    {
        "run.dir",
        "run.device",
        "data.path",
        "data.download",
        "features.weights",
        "loss.lpips_trunk",
        "train.total_kimg",
        "distributed.strategy",
        "distributed.timeout_seconds",
        "checkpoint.every_kimg",
        "checkpoint.keep",
    }
)
FREE_SECTIONS = ("telemetry.",)


def refuse_changes(manifest: dict[str, Any], facts: dict[str, Any]) -> None:
    """Compares a checkpoint's manifest with the present run.

    Raises:
        UserError: naming every setting that differs and would change the weights.
    """
    old, new = flatten(manifest["config"]), flatten(facts["config"])
    changed = [
        f"{name} {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in FREE and not name.startswith(FREE_SECTIONS)
    ]
    for fact, name in (("data_fingerprint", "the data set itself"), ("frozen_weights", "the frozen networks' weights")):
        if manifest[fact] != facts[fact]:
            changed.append(name)
    if changed:
        raise UserError(
            f"the run in {facts['config']['run']['dir']} was started with other settings ({'; '.join(changed)}); "
            "use those, or another run.dir"
        )


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
