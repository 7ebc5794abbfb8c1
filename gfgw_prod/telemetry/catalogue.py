"""Every metric: its name in TensorBoard and ``stats.jsonl``, and its name, type and help in Prometheus.

``docs/metrics.md`` is generated from it (``make docs``). A unit test checks that every tag in the code is listed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from gfgw_prod.process.restart_causes import CAUSES
from gfgw_prod.settings.evaluation import FIGURES
from gfgw_prod.telemetry.phases import STEP_PHASES
from gfgw_prod.telemetry.startup import PHASES

UNITS = ("seconds", "bytes", "ratio", "images", "steps", "iterations", "ranks", "rank", "share")
GPU, RANKS_ON_CPU, COUPLED = "on GPUs", "on CPUs", "with a coupling"
LOCAL, SAVED = "checkpoints on a local disk", "after the first save"
STARTS = {"launcher": "under launch/elastic.sh", "bank": "a new run", "checkpoint": "a resumed run"}  # by phase
EVALUATED = "with evaluation.every_kimg"
TOTAL_AT_ONE, TOTAL_BEFORE = "total_at_one", "total_before"  # of steps at t = 1 and at t < 1
LOSS_TERMS = ("flow", "feature", "structure", "energy", "lpips", "consistency")
MEASURED = f"{EVALUATED}, those of evaluation.metrics"


@dataclass(frozen=True)
class Metric:
    """A metric: ``tag`` is its name in TensorBoard and JSON, ``prometheus`` with fixed labels its name on /metrics.

    A metric ``by`` rank is a list: in JSON as it is, on the endpoint one sample per rank with that label. An ``info``
    has the value 1; its content is in its labels.

    Attributes:
        unit: of the value, where the name does not end in it.
        when: condition under which a run has the metric; empty: every run has it.
    """

    tag: str
    prometheus: str
    kind: Literal["gauge", "counter", "info"]
    help: str
    labels: dict[str, str] = field(default_factory=dict)
    by: str = ""
    unit: str = ""
    when: str = ""

    @property
    def measured_in(self) -> str:
        """The unit: the one given, else the last word of the name that is a unit, else ``number``."""
        words = self.prometheus.split("_")
        return self.unit or next((word for word in reversed(words) if word in UNITS), "number")

    @property
    def exposed(self) -> str:
        """The name on the endpoint."""
        return self.prometheus + {"counter": "_total", "info": "_info"}.get(self.kind, "")


def _metric(kind: Literal["gauge", "counter"], tag: str, text: str, *, name: str = "", **options: Any) -> Metric:
    """A metric; by default ``speed/step_seconds`` is named ``gfgw_step_seconds``, ``loss/flow`` ``gfgw_loss_flow``."""
    group, _, last = tag.partition("/")
    default = f"gfgw_{last}" if group in ("run", "speed", "optimizer", "data") else f"gfgw_{group}_{last}"
    return Metric(tag, name or default, kind, text, **options)


gauge, counter = partial(_metric, "gauge"), partial(_metric, "counter")


def _loss(term: str) -> Metric:
    compared = "with loss.feature, loss.structure or loss.energy above 0"
    when = {
        "total": "",
        "flow": "",
        "feature": compared,
        "structure": compared,
        TOTAL_AT_ONE: "with train.one_step_share above 0",
        TOTAL_BEFORE: "with a share below 1",
    }
    text = "Loss of the last recorded step that has the term; total_at_one and total_before, of steps of that kind."
    return gauge(
        f"loss/{term}", text, name="gfgw_loss", labels={"term": term}, when=when.get(term, "with its weight above 0")
    )


def _evaluation(figure: str) -> Metric:
    text = "Figures of the last evaluation of the averaged weights (docs/evaluation.md)."
    return gauge(f"evaluation/{figure}", text, name="gfgw_evaluation", labels={"figure": figure}, when=MEASURED)


CATALOGUE: tuple[Metric, ...] = (
    *(_loss(term) for term in ("total", TOTAL_AT_ONE, TOTAL_BEFORE, *LOSS_TERMS)),
    counter("run/images", "Images seen since the run began.", name="gfgw_images_seen"),
    gauge("run/planned_images", "Images of the whole run.", name="gfgw_images_planned"),
    gauge("run/eta_seconds", "Estimated time to the end of the run, from the mean time of a step since this start."),
    counter("run/steps", "Optimisation steps since the run began."),
    gauge("speed/step_seconds", "Mean wall time of a step since the last record, evaluations excluded."),
    *(
        gauge(
            f"speed/phase/{phase}",
            "Time of a step by phase: on CPUs the mean since the last record, on GPUs the last step.",
            name="gfgw_step_phase_seconds",
            labels={"phase": phase},
        )
        for phase in STEP_PHASES
    ),
    gauge(
        "speed/model_flops",
        "Operations a second of the networks' products, over all ranks; repeated ones do not count.",
    ),
    gauge("speed/mfu", "Model operations a second over the peak of the GPUs in this precision, 0 to 1.", when=GPU),
    gauge(
        "speed/images_per_second",
        "Images per second since the last record, evaluations excluded.",
        unit="images per second",
    ),
    gauge(
        "speed/rank_step_seconds",
        "A rank's own time: mean time of a step since the last record, without waiting for other ranks.",
        by="rank",
        when=RANKS_ON_CPU,
    ),
    gauge("speed/slowest_ratio", "Own time of the slowest rank over the median of all ranks.", when=RANKS_ON_CPU),
    gauge("speed/slowest_rank", "The rank with the longest own time.", when=RANKS_ON_CPU),
    gauge(
        "speed/data_wait_ratio",
        "Share of the time since the last record spent waiting for images, on the rank that waited most.",
    ),
    *(
        gauge(
            f"startup/{phase}",
            "Time from the start of rank 0, or of its launcher, to the end of the first step, by phase.",
            name="gfgw_startup_seconds",
            labels={"phase": phase},
            when=STARTS.get(phase, ""),
        )
        for phase in PHASES
    ),
    gauge("optimizer/gradient_norm", "Gradient norm before clipping."),
    gauge("optimizer/learning_rate", "Learning rate of the last step."),
    gauge("optimizer/ema_halflife_images", "Half-life of the averaged weights."),
    gauge("optimizer/loss_scale", "Factor on the losses under fp16; else 1."),
    *(
        gauge(
            f"schedule/time_{bound}",
            "Range of training times t in the current stage; 0 is data, 1 is noise.",
            name="gfgw_time_bound",
            labels={"bound": bound},
        )
        for bound in ("low", "high")
    ),
    gauge("transport/epsilon", "Entropic regularisation of the coupling."),
    gauge("transport/structure_weight", "Weight of the structure term."),
    gauge("transport/marginal_error", "L1 error of the plan's marginals.", when=COUPLED),
    gauge("transport/outer_iterations", "Outer iterations of the last step.", when=COUPLED),
    gauge("transport/inner_iterations", "Sinkhorn iterations of the last step.", when=COUPLED),
    gauge("transport/converged", "1 if the last coupling met its tolerance, else 0.", when=COUPLED),
    gauge("transport/sharpness", "Entropy of the plan: 0 is one-to-one, 1 is independent.", when=COUPLED),
    gauge(
        "transport/noise_correlation",
        "Correlation of the noise with the images that it is coupled with, in the unit of generator.correlation.",
    ),
    gauge("transport/bank_share", "Share of the data set used as targets within the last epoch."),
    gauge("transport/seconds", "Wall time of the last matching."),
    gauge("transport/bytes_sent", "Bytes this rank sent for the last matching."),
    gauge(
        "data/batch_crc",
        "CRC-32 of the last batch's row ids, streamed and matched: the same in equal runs. Not in TensorBoard.",
    ),
    *(_evaluation(figure) for figure in FIGURES),
    gauge("evaluation/seconds", "Wall time of the last evaluation.", when=EVALUATED),
    gauge(
        "run/evaluating",
        "1 during an evaluation, when no steps are made. On every node; not in TensorBoard or stats.jsonl.",
    ),
    gauge("run/started", "1 once data and networks are loaded. On every node; not in TensorBoard or stats.jsonl."),
    gauge("run/world_size", "Ranks that train.", unit="ranks"),
    gauge(
        "run/expected_ranks", "Ranks of the job with all its nodes, from launch/elastic.sh; else the ranks that train."
    ),
    gauge("run/idle_share", "Share of cell slots without weight, because ranks do not divide the cells."),
    *(
        counter(
            f"run/restarts/{cause}",
            "Restarts of the run, and changes of its ranks in place, by cause.",
            name="gfgw_restarts",
            labels={"cause": cause},
        )
        for cause in CAUSES
    ),
    counter(
        "run/lost_images", "Images lost in restarts: seen after the checkpoint that was resumed, in the whole run."
    ),
    gauge("run/productive_seconds", "Time in steps whose result was kept, in the whole run."),
    gauge("run/running_seconds", "Time since the run began, without evaluations and pauses after an orderly stop."),
    gauge("run/goodput", "Productive time over running time, in the whole run.", name="gfgw_goodput_ratio"),
    counter("run/audits", "Steps of this process that were computed twice and compared."),
    counter(
        "run/wrong_computations", "Computations of a step whose result differed from the agreed one, since this start."
    ),
    counter("run/hardware_errors", "Wrong computations by the rank that is known to have caused them.", by="rank"),
    counter("run/skipped_steps", "Steps skipped because of bad numbers, in the whole run."),
    counter("run/rollbacks", "Rollbacks to a checkpoint because of bad numbers, in the whole run."),
    counter("run/checkpoint_saves", "Checkpoints written by this process."),
    counter("run/checkpoint_failures", "Saves of this process that failed."),
    gauge("run/checkpoint_seconds", "Wall time of the last save, in the background.", when=SAVED),
    gauge("run/checkpoint_blocked_seconds", "Time for which the last save blocked training.", when=SAVED),
    gauge("run/checkpoint_bytes", "Size of the last checkpoint.", name="gfgw_checkpoint_size_bytes", when=SAVED),
    gauge("run/checkpoint_free_bytes", "Free space of the checkpoint storage before the last save.", when=LOCAL),
    gauge("run/checkpoint_images", "Images seen at the last checkpoint; a crash loses the images since."),
    gauge("run/checkpoint_interval_images", "Images between checkpoints, from checkpoint.every_kimg."),
    counter("run/uploads", "Checkpoints uploaded by this process.", name="gfgw_checkpoint_uploads"),
    counter("run/upload_failures", "Uploads that failed.", name="gfgw_checkpoint_upload_failures"),
    gauge("run/damaged_checkpoints", "Checkpoints quarantined as damaged."),
    gauge("run/checkpoint_age_seconds", "Time since the last checkpoint, or since this start if that is later."),
    gauge("memory/resident_bytes", "Resident main memory of a rank.", name="gfgw_resident_memory_bytes", by="rank"),
    gauge(
        "memory/available_bytes",
        "Available main memory on a rank's host.",
        name="gfgw_available_memory_bytes",
        by="rank",
    ),
    gauge(
        "memory/gpu_peak_bytes",
        "Peak GPU memory of a rank's tensors since the last record.",
        name="gfgw_gpu_memory_peak_bytes",
        by="rank",
        when=GPU,
    ),
    gauge(
        "memory/gpu_reserved_bytes",
        "GPU memory reserved by a rank's allocator.",
        name="gfgw_gpu_memory_reserved_bytes",
        by="rank",
        when=GPU,
    ),
    Metric(
        "run/build",
        "gfgw_build",
        "info",
        "The run directory, versions of the package, Python, torch and CUDA, and the model of the device.",
    ),
)

BY_TAG = {metric.tag: metric for metric in CATALOGUE}
