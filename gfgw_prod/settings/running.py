"""Settings of how a run is carried out: where, on what, saved how often, watched how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gfgw_prod.settings.types import Count, NonNegative, Positive, Real, Section, Text, UserPath, Whole


class RunSettings(Section):
    dir: UserPath = Field(Path("runs/default"), description="run directory; launching it again resumes it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute; auto takes a GPU if present")
    threads: Annotated[Whole, Field(ge=1, le=1024)] = Field(
        1, description="intra-op CPU threads per rank (part of the arithmetic)"
    )
    allow_changes: bool = Field(
        False, description="go on with a run although settings, data or packages have changed; recorded in the run"
    )


class DistributedSettings(Section):
    strategy: Literal["ddp", "fsdp"] = Field("ddp", description="replicate or shard the generator over ranks")
    reduction: Literal["exact", "fast"] = Field(
        "exact", description="exact sums gradients in one order for every number of ranks; fast is a plain all-reduce"
    )
    shard_ranks: Annotated[Whole, Field(ge=0, le=1_000_000)] = Field(
        0, description="neighbouring ranks that share one copy of the generator under fsdp (HSDP); 0 is all"
    )
    gather_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="weights as fsdp sends them for a pass; bfloat16, half as much, needs train.precision bf16",
    )
    timeout_seconds: Annotated[Whole, Field(ge=1, le=10_000_000)] = Field(
        600, description="longest wait for the other ranks, seconds"
    )


class CheckpointSettings(Section):
    every_kimg: Positive = Field(100.0, description="interval between checkpoints, kimg")
    keep: Count = Field(3, description="checkpoints kept, newest first")
    keep_every_kimg: NonNegative = Field(
        0.0, description="one checkpoint for each multiple of this stays for good, kimg; 0 is off"
    )
    root: Text = Field("", description="directory or fsspec URL of the checkpoints; empty is run.dir/checkpoints")
    upload_to: Text = Field("", description="directory or fsspec URL that they are copied to in the background")
    max_failures: Count = Field(3, description="saves in a row that may fail before the run ends with 76")


class ResilienceSettings(Section):
    hang_seconds: Annotated[Real, Field(gt=0, le=86400)] = Field(
        600.0,
        description="seconds without progress after which a rank writes its stacks and ends; more than any step takes",
    )
    max_no_progress: Count = Field(5, description="restarts without a new checkpoint after which the run ends with 76")
    audit_every_steps: Annotated[Whole, Field(ge=0, le=1_000_000_000)] = Field(
        1000, description="interval between steps that are computed twice and compared; 0 is off"
    )
    spike_factor: Annotated[Real, Field(gt=1, le=1e9)] = Field(
        100.0, description="gradient norm or loss over its running median at which a step is suspect"
    )
    skips_before_rollback: Count = Field(
        5, description="bad steps in a row after which the run goes back to a checkpoint; a second time ends it"
    )
    straggler_ratio: Annotated[Real, Field(gt=1, le=1e9)] = Field(
        1.5, description="a rank's time per step over the median of all ranks at which it is named"
    )


class TelemetrySettings(Section):
    log_every_kimg: Positive = Field(1.0, description="interval between metric records, kimg")
    samples_every_kimg: Positive = Field(50.0, description="interval between sample grids, kimg")
    sample_grid: Annotated[Whole, Field(ge=1, le=32)] = Field(10, description="images along a side of the sample grid")
    prometheus_port: Annotated[Whole, Field(ge=0, le=65535)] = Field(
        0, description="TCP port of metrics and probes, on every node; 0 is off"
    )
    prometheus_address: Text = Field("127.0.0.1", min_length=1, description="address that port is opened on")
    progress: Literal["auto", "bar", "plain", "off"] = Field(
        "auto", description="auto is a bar in a terminal, else lines"
    )
