"""Refuses to go on with a run whose trajectory new settings, data or machines would change, unless told to."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.data import DataSettings
from gfgw_prod.settings.removed import without_removed
from gfgw_prod.weights.digest import weights_digest

if TYPE_CHECKING:
    from gfgw_prod.data.sources import Table
    from gfgw_prod.settings.config import Config

# Settings with which a package's arithmetic ends in the weights; torch's and our own always does. Data sets and weight
# files have fingerprints of their own.
PACKAGES: dict[str, Callable[[Config], bool]] = {
    "gfgw-prod": lambda config: True,
    "torch": lambda config: True,
    "timm": lambda config: config.features.extractor == "dinov2",
    "lpips": lambda config: config.loss.lpips > 0,
    "torchvision": lambda config: config.loss.lpips > 0,
    "pot": lambda config: config.transport.backend == "pot",
}

# Settings that leave every weight as it is: where things are kept, what is reported, how the work is spread.
FREE = frozenset(
    {
        "run.dir",
        "run.device",
        "run.allow_changes",
        "features.weights",
        "features.cache",
        "generator.pretrained",
        "loss.lpips_trunk",
        "train.total_kimg",
        "train.kept_passes",
        "generator.checkpoint_activations",
        "distributed.strategy",
        "distributed.shard_ranks",
        "distributed.sync_each_turn",
        "distributed.timeout_seconds",
        "resilience.hang_seconds",
        "resilience.max_no_progress",
        "resilience.audit_every_steps",
        "resilience.straggler_ratio",
    }
)
# Of the data, what they are has a fingerprint, however they were found, decoded and brought.
FREE |= {f"data.{name}" for name in DataSettings.model_fields} - {"data.flip"}
FREE_SECTIONS = ("checkpoint.", "telemetry.", "evaluation.")
# Settings in which the ranks of a job may differ: all others say when, and on what, ranks meet.
PER_RANK = frozenset(
    {
        "run.dir",
        "data.path",
        "data.download",
        "features.weights",
        "features.cache",
        "generator.pretrained",
        "loss.lpips_trunk",
        "evaluation.inception",
        "evaluation.dinov2",
        "telemetry.prometheus_port",
        "telemetry.prometheus_address",
        "telemetry.progress",
    }
)


def is_free(setting: str) -> bool:
    """Whether a run may go on with another value of it."""
    return setting in FREE or setting.startswith(FREE_SECTIONS)


def arithmetic_of(device: torch.device) -> str:
    """What computes, as far as bits depend on it: a GPU's model and libraries, or a CPU's model and instructions."""
    if device.type == "cuda":
        return (
            f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        )
    return f"{_cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def run_facts(config: Config, table: Table, frozen: Sequence[nn.Module], device: torch.device) -> dict[str, Any]:
    """What a checkpoint's manifest says of the run: all that its weights are a function of, as JSON."""
    return {
        "config": config.model_dump(mode="json"),
        "data_fingerprint": table.fingerprint(),
        "frozen_weights": [weights_digest(net.state_dict()) for net in frozen],
        "packages": {name: version(name) for name, matters in PACKAGES.items() if matters(config)},
        "arithmetic": arithmetic_of(device),
        "num_classes": table.num_classes,
        "image_shape": list(table.image_shape),
        "changes": [],
    }


def find_changes(manifest: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """Every difference between a checkpoint's run and the present one that would change the weights."""
    old, new = (
        flatten(without_removed(each["config"]))
        | {f"package {name}": found for name, found in each["packages"].items()}
        | {"the arithmetic of": each["arithmetic"]}
        for each in (manifest, facts)
    )
    found = [
        f"{name} {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not is_free(name)
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
    found = find_changes(manifest, facts)
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


def require_same_settings(by_rank: Sequence[dict[str, Any]]) -> None:
    """Refuses a job whose ranks were started with other settings than rank 0.

    Raises:
        UserError: naming the first such rank and what differs, on all ranks alike.
    """
    first, *others = (flatten(settings) for settings in by_rank)
    for rank, other in enumerate(others, start=1):
        found = [name for name in sorted(first) if first[name] != other.get(name) and name not in PER_RANK]
        if found:
            differences = "; ".join(f"{name} {first[name]!r} and {other.get(name)!r}" for name in found)
            raise UserError(f"ranks 0 and {rank} were started with different settings ({differences}); use the same")


def accept_rank_differences(by_rank: Sequence[dict[str, Any]], facts: dict[str, Any], step: int) -> list[str]:
    """Refuses ranks that differ from rank 0, or enters and returns their differences, as ``accept_changes`` does.

    Raises:
        UserError: naming the first rank that would train other weights, and why.
    """
    mixed = {rank: find_changes(by_rank[0], other) for rank, other in enumerate(by_rank)}
    found = [f"rank {rank}: {'; '.join(different)}" for rank, different in mixed.items() if different]
    if found and not facts["config"]["run"]["allow_changes"]:
        raise UserError(
            f"ranks differ from rank 0 in what trains the weights ({found[0]}); "
            "make their nodes alike, or set run.allow_changes true"
        )
    if found and found not in [each["changes"] for each in facts["changes"]]:  # a mixed job may be resumed often
        facts["changes"].append({"step": step, "changes": found})
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
