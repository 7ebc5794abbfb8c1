"""Refuse to resume a run with settings, data or machines that would change its weights, unless allowed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.data import DataSettings
from gfgw_prod.settings.nested import flatten
from gfgw_prod.settings.removed import without_removed
from gfgw_prod.telemetry.build import cpu_model
from gfgw_prod.weights.digest import weights_digest

if TYPE_CHECKING:
    from gfgw_prod.data.sources import Table
    from gfgw_prod.settings.config import Config

# Packages whose computations reach the weights, and when. Data sets and weight files have their own fingerprints.
PACKAGES: dict[str, Callable[[Config], bool]] = {
    "gfgw-prod": lambda config: True,
    "torch": lambda config: True,
    "timm": lambda config: config.features.timm_network is not None,
    "lpips": lambda config: config.loss.lpips > 0,
    "torchvision": lambda config: config.loss.lpips > 0,
    "pot": lambda config: config.transport.backend == "pot",
}

# Environment variables that have libraries compute other bits: by other instructions, in another order or precision.
# (ATEN_CPU_CAPABILITY shows in the instruction set that torch reports.)
ARITHMETIC_VARIABLES = (
    *("MKL_CBWR", "MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS"),
    *(
        f"{prefix}_{name}"
        for prefix in ("ONEDNN", "DNNL")
        for name in ("MAX_CPU_ISA", "CPU_ISA_HINTS", "DEFAULT_FPMATH_MODE")
    ),
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT"),
    *("CUBLASLT_WORKSPACE_SIZE", "DISABLE_ADDMM_CUDA_LT", "TORCH_CUDNN_V8_API_DISABLED"),
)

# Places of files, which change no weight and may differ between ranks.
PLACES = {"run.dir", "features.weights", "features.cache", "generator.pretrained", "loss.lpips_trunk"}
# Settings that change no weight: places, reports, the distribution of the work.
FREE = PLACES | {
    *("run.device", "run.allow_changes", "train.total_kimg", "train.max_minutes", "train.profile_steps"),
    *("train.kept_passes", "generator.checkpoint_activations"),
    *("distributed.strategy", "distributed.shard_ranks", "distributed.timeout_seconds", "resilience.hang_seconds"),
    *(
        "resilience.max_no_progress",
        "resilience.audit_every_steps",
        "resilience.straggler_ratio",
        "resilience.in_place",
        "resilience.peer_copy_every_steps",
    ),
}
# The data set has a fingerprint: where it lies and how it is read does not matter.
FREE |= {f"data.{name}" for name in DataSettings.model_fields} - {"data.flip"}
FREE_SECTIONS = ("checkpoint.", "telemetry.", "evaluation.")
# Settings that may differ between the ranks of a job. All others decide when ranks meet in a collective, and on what.
PER_RANK = PLACES | {
    *("data.path", "data.download", "evaluation.inception", "evaluation.dinov2", "evaluation.weights"),
    *("telemetry.prometheus_port", "telemetry.prometheus_address", "telemetry.progress"),
}


def is_free(setting: str) -> bool:
    """Whether a run may be resumed with another value of a setting."""
    return setting in FREE or setting.startswith(FREE_SECTIONS)


def arithmetic_of(device: torch.device) -> str:
    """What results depend on bitwise: the GPU and its libraries, or the CPU and its instruction set; and variables."""
    if device.type == "cuda":
        cuda, cudnn = torch.version.cuda, torch.backends.cudnn.version()
        hardware = f"{torch.cuda.get_device_name(device)}, CUDA {cuda}, cuDNN {cudnn}"
    else:
        hardware = f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"
    return ", ".join([hardware, *arithmetic_variables()])


def arithmetic_variables() -> list[str]:
    """Those of ``ARITHMETIC_VARIABLES`` that are set, as ``NAME=value``."""
    return [f"{name}={value}" for name in ARITHMETIC_VARIABLES if (value := os.environ.get(name))]


def run_facts(config: Config, table: Table, frozen: Sequence[nn.Module], device: torch.device) -> dict[str, Any]:
    """Everything that determines the weights of a run, as JSON for a checkpoint's manifest."""
    return {
        "config": config.model_dump(mode="json"),
        "data_fingerprint": table.fingerprint(),
        "frozen_weights": [weights_digest(net.state_dict()) for net in frozen],
        "packages": {name: version(name) for name, matters in PACKAGES.items() if matters(config)},
        "arithmetic": arithmetic_of(device),
        "num_classes": table.num_classes,
        "class_names": list(table.class_names),
        "image_shape": list(table.image_shape),
        "changes": [],
    }


def find_changes(manifest: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """List every difference between the run of a checkpoint and the present one that would change the weights."""
    old, new = (
        flatten(without_removed(each["config"]))
        | {f"package {name}": found for name, found in each["packages"].items()}
        | {"hardware": each["arithmetic"]}
        for each in (manifest, facts)
    )
    found = [
        f"{name} {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not is_free(name)
    ]
    if manifest["data_fingerprint"] != facts["data_fingerprint"]:
        read = [
            f"{name} {old.get(name)!r} -> {new.get(name)!r}"
            for name in sorted(new)
            if name.startswith("data.") and name in FREE and name in old and old[name] != new[name]
        ]
        found.append("the contents of the data set" + (f": {', '.join(read)}" if read else ""))
    if manifest["frozen_weights"] != facts["frozen_weights"]:
        found.append("the frozen networks' weights")
    return found


def accept_changes(manifest: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """Check the changes since a checkpoint. If they are allowed, record them in ``facts["changes"]`` and return them.

    Raises:
        UserError: if ``run.allow_changes`` is not set; it names every change.
    """
    found = find_changes(manifest, facts)
    settings = facts["config"]
    before = manifest["config"]["train"]["batch_size"]
    if settings["train"]["batch_size"] != before:
        raise UserError(
            f"the run in {settings['run']['dir']} has train.batch_size {before}, which cannot change; keep it, or use "
            "another run.dir"
        )
    if found and not settings["run"]["allow_changes"]:
        raise UserError(
            f"the run in {settings['run']['dir']} was started with other settings ({'; '.join(found)}); "
            "use the old ones, another run.dir, or run.allow_changes true"
        )
    facts["changes"] = [*manifest["changes"], *([{"step": manifest["step"], "changes": found}] if found else [])]
    return found


def require_length(config: Config, step: int) -> None:
    """Raise ``UserError`` if a run that has made ``step`` steps is to have fewer."""
    if step > config.total_steps:
        trained = step * config.train.batch_size / 1000
        raise UserError(
            f"the run in {config.run.dir} has trained {trained:g} kimg, more than train.total_kimg "
            f"{config.train.total_kimg:g}; give at least that, or another run.dir"
        )


def require_same_settings(by_rank: Mapping[int, dict[str, Any]]) -> None:
    """Check that all ranks of a job were started with the same settings.

    Raises:
        UserError: if not; the same on all ranks. It names the first such rank and what differs.
    """
    (_, own), *others = ((rank, flatten(settings)) for rank, settings in by_rank.items())
    for rank, other in others:
        found = [name for name in sorted(own) if own[name] != other.get(name) and name not in PER_RANK]
        if found:
            differences = "; ".join(f"{name} {own[name]!r} and {other.get(name)!r}" for name in found)
            raise UserError(f"ranks 0 and {rank} were started with different settings ({differences}); use the same")


def accept_rank_differences(by_rank: Mapping[int, dict[str, Any]], facts: dict[str, Any], step: int) -> list[str]:
    """Check the facts of all ranks. If differences are allowed, record them as ``accept_changes`` does and return them.

    Raises:
        UserError: if ``run.allow_changes`` is not set; it names the first rank that differs from rank 0, and how.
    """
    by_difference = {rank: find_changes(by_rank[0], other) for rank, other in by_rank.items()}
    found = [f"rank {rank}: {'; '.join(differences)}" for rank, differences in by_difference.items() if differences]
    if found and not facts["config"]["run"]["allow_changes"]:
        raise UserError(
            f"ranks would compute other weights than rank 0 ({found[0]}); "
            "use equal nodes, or set run.allow_changes true"
        )
    if found and found not in [each["changes"] for each in facts["changes"]]:  # once, however often the job is resumed
        facts["changes"].append({"step": step, "changes": found})
    return found


def require_fit(run: dict[str, Any], facts: dict[str, Any], rank: int) -> None:
    """Check that a rank may join a run: it has the same settings, and computes the same weights.

    Args:
        run: facts of the run.
        facts: of the rank.
        rank: its number; at least 1.

    Raises:
        UserError: if it may not. The run goes on without it.
    """
    require_same_settings({0: run["config"], rank: facts["config"]})
    accept_rank_differences({0: run, rank: facts}, {**facts, "changes": []}, 0)
