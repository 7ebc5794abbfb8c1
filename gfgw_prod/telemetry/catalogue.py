"""Every metric: its name in TensorBoard and ``stats.jsonl``, and its name, type and help in Prometheus.

``docs/metrics.md`` is generated from it (``make docs``). A unit test checks that every tag in the code is listed.
"""

from __future__ import annotations

from gfgw_prod.process.restart_causes import CAUSES
from gfgw_prod.settings.evaluation import FIGURES
from gfgw_prod.telemetry.metric import Metric
from gfgw_prod.telemetry.phases import STEP_PHASES
from gfgw_prod.telemetry.startup import PHASES

GPU, RANKS_ON_CPU, COUPLED = "on GPUs", "on CPUs", "with a coupling"
LOCAL, SAVED = "checkpoints on a local disk", "after the first save"
EVALUATED = "with evaluation.every_kimg"
LOSS_TERMS = ("flow", "feature", "structure", "energy", "lpips", "consistency", "boundary")
MEASURED = f"{EVALUATED}, those of evaluation.metrics"


def _loss(term: str) -> Metric:
    when = "" if term == "total" else "with its weight above 0"
    text = "Loss of the last recorded step that has the term."
    return Metric(f"loss/{term}", "gfgw_loss", "gauge", text, {"term": term}, when=when)


def _evaluation(figure: str) -> Metric:
    text = "Figures of the last evaluation of the averaged weights (docs/evaluation.md)."
    return Metric(f"evaluation/{figure}", "gfgw_evaluation", "gauge", text, {"figure": figure}, when=MEASURED)


def _coupling(figure: str, text: str) -> Metric:
    return Metric(f"transport/{figure}", f"gfgw_transport_{figure}", "gauge", text, when=COUPLED)


CATALOGUE: tuple[Metric, ...] = (
    *(_loss(term) for term in ("total", *LOSS_TERMS)),
    Metric("run/images", "gfgw_images_seen", "counter", "Images seen since the run began."),
    Metric("run/planned_images", "gfgw_images_planned", "gauge", "Images of the whole run."),
    Metric("run/steps", "gfgw_steps", "counter", "Optimisation steps since the run began."),
    Metric(
        "speed/step_seconds",
        "gfgw_step_seconds",
        "gauge",
        "Mean wall time of a step since the last record, evaluations excluded.",
    ),
    *(
        Metric(
            f"speed/phase/{phase}",
            "gfgw_step_phase_seconds",
            "gauge",
            "Time of a step by phase: on CPUs the mean since the last record, on GPUs the last step.",
            {"phase": phase},
        )
        for phase in STEP_PHASES
    ),
    Metric(
        "speed/images_per_second",
        "gfgw_images_per_second",
        "gauge",
        "Images per second since the last record, evaluations excluded.",
        unit="images per second",
    ),
    Metric(
        "speed/rank_step_seconds",
        "gfgw_rank_step_seconds",
        "gauge",
        "A rank's own time: mean time of a step since the last record, without waiting for other ranks.",
        by="rank",
        when=RANKS_ON_CPU,
    ),
    Metric(
        "speed/slowest_ratio",
        "gfgw_slowest_ratio",
        "gauge",
        "Own time of the slowest rank over the median of all ranks.",
        when=RANKS_ON_CPU,
    ),
    Metric(
        "speed/slowest_rank",
        "gfgw_slowest_rank",
        "gauge",
        "The rank with the longest own time.",
        when=RANKS_ON_CPU,
    ),
    Metric(
        "speed/data_wait_ratio",
        "gfgw_data_wait_ratio",
        "gauge",
        "Share of the time since the last record spent waiting for images, on the rank that waited most.",
    ),
    *(
        Metric(
            f"startup/{phase}",
            "gfgw_startup_seconds",
            "gauge",
            "Time from the start of rank 0, or of its launcher, to the end of the first step, by phase.",
            {"phase": phase},
            when={"launcher": "under launch/elastic.sh", "bank": "a new run", "checkpoint": "a resumed run"}.get(
                phase, ""
            ),
        )
        for phase in PHASES
    ),
    Metric("optimizer/gradient_norm", "gfgw_gradient_norm", "gauge", "Gradient norm before clipping."),
    Metric("optimizer/learning_rate", "gfgw_learning_rate", "gauge", "Learning rate of the last step."),
    Metric("optimizer/ema_halflife_images", "gfgw_ema_halflife_images", "gauge", "Half-life of the averaged weights."),
    Metric("optimizer/loss_scale", "gfgw_loss_scale", "gauge", "Factor on the losses under fp16; else 1."),
    *(
        Metric(
            f"schedule/time_{bound}",
            "gfgw_time_bound",
            "gauge",
            "Range of training times t in the current stage; 0 is data, 1 is noise.",
            {"bound": bound},
        )
        for bound in ("low", "high")
    ),
    Metric("transport/epsilon", "gfgw_transport_epsilon", "gauge", "Entropic regularisation of the coupling."),
    Metric("transport/structure_weight", "gfgw_transport_structure_weight", "gauge", "Weight of the structure term."),
    _coupling("marginal_error", "L1 error of the plan's marginals."),
    _coupling("outer_iterations", "Outer iterations of the last step."),
    _coupling("inner_iterations", "Sinkhorn iterations of the last step."),
    _coupling("converged", "1 if the last coupling met its tolerance, else 0."),
    _coupling("sharpness", "Entropy of the plan: 0 is one-to-one, 1 is independent."),
    Metric(
        "transport/bank_share",
        "gfgw_transport_bank_share",
        "gauge",
        "Share of the data set used as targets within the last epoch.",
    ),
    Metric("transport/seconds", "gfgw_transport_seconds", "gauge", "Wall time of the last matching."),
    Metric("transport/bytes_sent", "gfgw_transport_bytes_sent", "gauge", "Bytes this rank sent for the last matching."),
    Metric(
        "data/batch_crc",
        "gfgw_batch_crc",
        "gauge",
        "CRC-32 of the last batch's row ids, streamed and matched: equal in runs that see the same rows.",
    ),
    *(_evaluation(figure) for figure in FIGURES),
    Metric(
        "evaluation/seconds", "gfgw_evaluation_seconds", "gauge", "Wall time of the last evaluation.", when=EVALUATED
    ),
    Metric(
        "run/evaluating",
        "gfgw_evaluating",
        "gauge",
        "1 during an evaluation, when no steps are made. On every node; not in TensorBoard or stats.jsonl.",
    ),
    Metric(
        "run/started",
        "gfgw_started",
        "gauge",
        "1 once data and networks are loaded. On every node; not in TensorBoard or stats.jsonl.",
    ),
    Metric("run/world_size", "gfgw_world_size", "gauge", "Ranks that train.", unit="ranks"),
    Metric(
        "run/expected_ranks",
        "gfgw_expected_ranks",
        "gauge",
        "Ranks of the job with all its nodes, from launch/elastic.sh; else the ranks that train.",
    ),
    Metric(
        "run/idle_share",
        "gfgw_idle_share",
        "gauge",
        "Share of cell slots without weight, because ranks do not divide the cells.",
    ),
    *(
        Metric(
            f"run/restarts/{cause}",
            "gfgw_restarts",
            "counter",
            "Starts of the run after the first, by cause of the restart.",
            {"cause": cause},
        )
        for cause in CAUSES
    ),
    Metric(
        "run/lost_images",
        "gfgw_lost_images",
        "counter",
        "Images lost in restarts: seen after the checkpoint that was resumed, in the whole run.",
    ),
    Metric(
        "run/productive_seconds",
        "gfgw_productive_seconds",
        "gauge",
        "Time in steps whose result was kept, in the whole run.",
    ),
    Metric(
        "run/running_seconds",
        "gfgw_running_seconds",
        "gauge",
        "Time since the run began, without evaluations and pauses after an orderly stop.",
    ),
    Metric("run/goodput", "gfgw_goodput_ratio", "gauge", "Productive time over running time, in the whole run."),
    Metric("run/audits", "gfgw_audits", "counter", "Steps of this process that were computed twice and compared."),
    Metric(
        "run/wrong_computations",
        "gfgw_wrong_computations",
        "counter",
        "Computations of a step whose result differed from the agreed one, since this start.",
    ),
    Metric(
        "run/hardware_errors",
        "gfgw_hardware_errors",
        "counter",
        "Wrong computations by the rank that is known to have caused them.",
        by="rank",
    ),
    Metric(
        "run/skipped_steps", "gfgw_skipped_steps", "counter", "Steps skipped because of bad numbers, in the whole run."
    ),
    Metric(
        "run/rollbacks",
        "gfgw_rollbacks",
        "counter",
        "Rollbacks to a checkpoint because of bad numbers, in the whole run.",
    ),
    Metric("run/checkpoint_saves", "gfgw_checkpoint_saves", "counter", "Checkpoints written by this process."),
    Metric("run/checkpoint_failures", "gfgw_checkpoint_failures", "counter", "Saves of this process that failed."),
    Metric(
        "run/checkpoint_seconds",
        "gfgw_checkpoint_seconds",
        "gauge",
        "Wall time of the last save, in the background.",
        when=SAVED,
    ),
    Metric(
        "run/checkpoint_blocked_seconds",
        "gfgw_checkpoint_blocked_seconds",
        "gauge",
        "Time for which the last save blocked training.",
        when=SAVED,
    ),
    Metric("run/checkpoint_bytes", "gfgw_checkpoint_size_bytes", "gauge", "Size of the last checkpoint.", when=SAVED),
    Metric(
        "run/checkpoint_free_bytes",
        "gfgw_checkpoint_free_bytes",
        "gauge",
        "Free space of the checkpoint storage before the last save.",
        when=LOCAL,
    ),
    Metric(
        "run/checkpoint_images",
        "gfgw_checkpoint_images",
        "gauge",
        "Images seen at the last checkpoint; a crash loses the images since.",
    ),
    Metric(
        "run/checkpoint_interval_images",
        "gfgw_checkpoint_interval_images",
        "gauge",
        "Images between checkpoints, from checkpoint.every_kimg.",
    ),
    Metric("run/uploads", "gfgw_checkpoint_uploads", "counter", "Checkpoints uploaded by this process."),
    Metric("run/upload_failures", "gfgw_checkpoint_upload_failures", "counter", "Uploads that failed."),
    Metric("run/damaged_checkpoints", "gfgw_damaged_checkpoints", "gauge", "Checkpoints quarantined as damaged."),
    Metric(
        "run/checkpoint_age_seconds",
        "gfgw_checkpoint_age_seconds",
        "gauge",
        "Time since the last checkpoint, or since this start if that is later.",
    ),
    Metric(
        "memory/resident_bytes", "gfgw_resident_memory_bytes", "gauge", "Resident main memory of a rank.", by="rank"
    ),
    Metric(
        "memory/available_bytes",
        "gfgw_available_memory_bytes",
        "gauge",
        "Available main memory on a rank's host.",
        by="rank",
    ),
    Metric(
        "memory/gpu_peak_bytes",
        "gfgw_gpu_memory_peak_bytes",
        "gauge",
        "Peak GPU memory of a rank's tensors since the last record.",
        by="rank",
        when=GPU,
    ),
    Metric(
        "memory/gpu_reserved_bytes",
        "gfgw_gpu_memory_reserved_bytes",
        "gauge",
        "GPU memory reserved by a rank's allocator.",
        by="rank",
        when=GPU,
    ),
    Metric(
        "run/build",
        "gfgw_build",
        "info",
        "Versions of the package, Python, torch and CUDA, and the model of the device.",
    ),
)

BY_TAG = {metric.tag: metric for metric in CATALOGUE}
