"""Settings of a run's surroundings: directory, device, ranks, checkpoints, fault handling, telemetry."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gfgw_prod.settings.types import (
    AutoFlag,
    Count,
    Flag,
    NonNegative,
    Place,
    Positive,
    Real,
    Section,
    Text,
    UserPath,
    Whole,
    setting,
)


class RunSettings(Section):
    dir: UserPath = setting(Path("runs/default"), "run directory; launching it again resumes it")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where to compute; auto takes a GPU if visible")
    threads: Whole = setting(1, "intra-op CPU threads per rank (part of the arithmetic)", ge=1, le=1024)
    allow_changes: Flag = setting(False, "resume with changed settings, data or packages; the run records the changes")


class DistributedSettings(Section):
    strategy: Literal["ddp", "fsdp"] = setting("ddp", "replicate or shard the generator over ranks")
    reduction: Literal["exact", "fast"] = setting(
        "exact", "exact adds gradients in the same order for every number of ranks; fast is a plain all-reduce"
    )
    shard_ranks: Whole = setting(
        0, "neighbouring ranks that share one copy of the generator under fsdp (HSDP); 0 is all", ge=0, le=1_000_000
    )
    gather_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "type in which fsdp gathers weights; bfloat16 halves the bytes and needs train.precision bf16"
    )
    timeout_seconds: Whole = setting(600, "longest wait for other ranks in a collective, seconds", ge=1, le=10_000_000)


class CheckpointSettings(Section):
    every_kimg: Positive = setting(20.0, "interval between checkpoints, kimg")
    every_minutes: NonNegative = setting(2.0, "longest time from one checkpoint to the next, minutes; 0 is off")
    keep: Count = setting(3, "number of newest checkpoints kept")
    keep_every_kimg: NonNegative = setting(0.0, "keep a checkpoint for each multiple of this forever, kimg; 0 is off")
    root: Place = setting("", "directory or fsspec URL of the checkpoints; empty is run.dir/checkpoints")
    upload_to: Place = setting("", "directory or fsspec URL to copy checkpoints to in the background")
    max_failures: Count = setting(3, "saves in a row that may fail before the run ends with exit code 76")


class ResilienceSettings(Section):
    hang_seconds: Real = setting(
        600.0,
        "seconds without progress after which a rank writes its stacks and exits; longer than any step",
        gt=0,
        le=86400,
    )
    max_no_progress: Count = setting(5, "restarts without a new checkpoint after which the run ends with exit code 76")
    audit_every_steps: Whole = setting(
        1000, "interval between audits, which compute a step twice and compare; 0 is off", ge=0, le=1_000_000_000
    )
    spike_factor: Real = setting(
        100.0, "ratio of gradient norm or loss to its running median above which a step is computed again", gt=1, le=1e9
    )
    skips_before_rollback: Count = setting(
        5, "skipped steps in a row after which the run returns to a checkpoint; the second time it ends"
    )
    in_place: AutoFlag = setting(
        "auto",
        "go on when ranks are lost, join or leave (under the elastic launcher); else all restart. auto: on CPUs; "
        "it has not run on GPUs yet",
    )
    peer_copy_every_steps: Whole = setting(
        5,
        "steps between copies of a rank's state that another rank keeps, where no two hold the same (in_place, fsdp)",
        ge=1,
        le=1_000_000_000,
    )
    straggler_ratio: Real = setting(
        1.5,
        "ratio of a rank's time per step to the median of all ranks above which it is reported as slow",
        gt=1,
        le=1e9,
    )

    def goes_on_in_place(self, *, on_gpu: bool) -> bool:
        """Whether ranks on such devices go on in place."""
        return self.in_place == "true" or (self.in_place == "auto" and not on_gpu)


class TelemetrySettings(Section):
    log_every_kimg: Positive = setting(1.0, "interval between metric records, kimg")
    samples_every_kimg: Positive = setting(10.0, "interval between sample grids, kimg")
    sample_grid: Whole = setting(10, "images along a side of the sample grid", ge=1, le=32)
    prometheus_port: Whole = setting(0, "TCP port for metrics and probes on every node; 0 is off", ge=0, le=65535)
    prometheus_address: Text = setting("127.0.0.1", "address on which that port is opened", min_length=1)
    progress: Literal["auto", "bar", "plain", "off"] = setting("auto", "progress display; auto: a bar in a terminal")
    log_format: Literal["text", "json"] = setting(
        "text", "lines of a log; json: an object per line, for log collectors"
    )
    sinks: tuple[Text, ...] = setting((), "more sinks for the metrics: wandb, mlflow, and those of other packages")
