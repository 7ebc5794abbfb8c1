"""Refuses to go on with a run whose trajectory new settings, data or packages would change, unless told to."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gfgw_prod.resilience.checkpoint import weights_digest
from gfgw_prod.resilience.exit_codes import UserError

if TYPE_CHECKING:
    from gfgw_prod.config import Config
    from gfgw_prod.data.sources import Table

# Those whose arithmetic ends in the weights. Data sets and weight files have fingerprints of their own.
PACKAGES = ("gfgw-prod", "lpips", "pot", "timm", "torch", "torchvision")

# Settings that leave every weight as it is: where things are kept, what is reported, how the work is spread.
FREE = frozenset(
    {
        "run.dir",
        "run.device",
        "run.allow_changes",
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


def arithmetic_of(device: torch.device) -> str:
    """What computes: a GPU's model, or the instruction set that torch's CPU kernels use; bits depend on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def facts_of(config: Config, table: Table, frozen: Sequence[nn.Module], device: torch.device) -> dict[str, Any]:
    """What a checkpoint's manifest says of the run: all that its weights are a function of, as JSON."""
    return {
        "config": config.model_dump(mode="json"),
        "data_fingerprint": table.fingerprint(),
        "frozen_weights": [weights_digest(net.state_dict()) for net in frozen],
        "packages": {name: version(name) for name in PACKAGES},
        "arithmetic": arithmetic_of(device),
        "num_classes": table.num_classes,
        "image_shape": list(table.image_shape),
        "changes": [],
    }


def changes(manifest: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """Every difference between a checkpoint's run and the present one that would change the weights."""
    old, new = (
        flatten(each["config"])
        | {f"package {name}": found for name, found in each["packages"].items()}
        | {"the arithmetic of": each["arithmetic"]}
        for each in (manifest, facts)
    )
    found = [
        f"{name} {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in FREE and not name.startswith(FREE_SECTIONS)
    ]
    for fact, name in (("data_fingerprint", "the data set itself"), ("frozen_weights", "the frozen networks' weights")):
        if manifest[fact] != facts[fact]:
            found.append(name)
    return found


def accept_changes(manifest: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """Refuses changes unless ``run.allow_changes`` is set; then enters them in ``facts["changes"]``, and returns them.

    Raises:
        UserError: naming every difference that would change the weights.
    """
    found = changes(manifest, facts)
    settings = facts["config"]
    before = manifest["config"]["train"]["batch_size"]
    if settings["train"]["batch_size"] != before:
        raise UserError(
            f"the run in {settings['run']['dir']} counts its steps in batches of {before} images; keep "
            f"train.batch_size {before}, or use another run.dir"
        )
    if found and not settings["run"]["allow_changes"]:
        raise UserError(
            f"the run in {settings['run']['dir']} was started with other settings ({'; '.join(found)}); "
            "use those, another run.dir, or run.allow_changes true"
        )
    facts["changes"] = [*manifest["changes"], *([{"step": manifest["step"], "changes": found}] if found else [])]
    return found


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
