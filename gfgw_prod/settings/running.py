"""Settings of a run's surroundings: directory, device, ranks, checkpoints, fault handling, telemetry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gfgw_prod.settings.types import Count, Flag, NonNegative, Place, Positive, Real, Section, Text, UserPath, Whole


class RunSettings(Section):
    dir: UserPath = Field(Path("runs/default"), description="run directory; launching it again resumes it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute; auto takes a GPU if visible")
    threads: Annotated[Whole, Field(ge=1, le=1024)] = Field(
        1, description="intra-op CPU threads per rank (part of the arithmetic)"
    )
    allow_changes: Flag = Field(
        False,
        description="resume although settings, data or packages have changed; the changes are recorded in the run",
    )


class DistributedSettings(Section):
    strategy: Literal["ddp", "fsdp"] = Field("ddp", description="replicate or shard the generator over ranks")
    reduction: Literal["exact", "fast"] = Field(
        "exact",
        description="exact adds gradients in the same order for every number of ranks; fast is a plain all-reduce",
    )
    shard_ranks: Annotated[Whole, Field(ge=0, le=1_000_000)] = Field(
        0, description="neighbouring ranks that share one copy of the generator under fsdp (HSDP); 0 is all"
    )
    gather_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="type in which fsdp gathers weights; bfloat16 halves the bytes and needs train.precision bf16",
    )
    timeout_seconds: Annotated[Whole, Field(ge=1, le=10_000_000)] = Field(
        600, description="longest wait for other ranks in a collective, seconds"
    )


class CheckpointSettings(Section):
    every_kimg: Positive = Field(100.0, description="interval between checkpoints, kimg")
    keep: Count = Field(3, description="number of newest checkpoints kept")
    keep_every_kimg: NonNegative = Field(
        0.0, description="also keep a checkpoint for each multiple of this forever, kimg; 0 is off"
    )
    root: Place = Field("", description="directory or fsspec URL of the checkpoints; empty is run.dir/checkpoints")
    upload_to: Place = Field("", description="directory or fsspec URL to copy checkpoints to in the background")
    max_failures: Count = Field(3, description="saves in a row that may fail before the run ends with exit code 76")


class ResilienceSettings(Section):
    hang_seconds: Annotated[Real, Field(gt=0, le=86400)] = Field(
        600.0,
        description="seconds without progress after which a rank writes its stacks and exits; longer than any step",
    )
    max_no_progress: Count = Field(
        5, description="restarts without a new checkpoint after which the run ends with exit code 76"
    )
    audit_every_steps: Annotated[Whole, Field(ge=0, le=1_000_000_000)] = Field(
        1000, description="interval between audits, which compute a step twice and compare; 0 is off"
    )
    spike_factor: Annotated[Real, Field(gt=1, le=1e9)] = Field(
        100.0, description="ratio of gradient norm or loss to its running median above which a step is computed again"
    )
    skips_before_rollback: Count = Field(
        5, description="skipped steps in a row after which the run returns to a checkpoint; the second time it ends"
    )
    straggler_ratio: Annotated[Real, Field(gt=1, le=1e9)] = Field(
        1.5, description="ratio of a rank's time per step to the median of all ranks above which it is reported as slow"
    )


class TelemetrySettings(Section):
    log_every_kimg: Positive = Field(1.0, description="interval between metric records, kimg")
    samples_every_kimg: Positive = Field(50.0, description="interval between sample grids, kimg")
    sample_grid: Annotated[Whole, Field(ge=1, le=32)] = Field(10, description="images along a side of the sample grid")
    prometheus_port: Annotated[Whole, Field(ge=0, le=65535)] = Field(
        0, description="TCP port for metrics and probes on every node; 0 is off"
    )
    prometheus_address: Text = Field("127.0.0.1", min_length=1, description="address on which that port is opened")
    progress: Literal["auto", "bar", "plain", "off"] = Field(
        "auto", description="progress display; auto is a bar in a terminal, else lines"
    )
