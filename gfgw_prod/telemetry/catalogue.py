"""Every metric in one place: what it is called in TensorBoard and ``stats.jsonl``, and what Prometheus sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gfgw_prod.telemetry.startup import PHASES


@dataclass(frozen=True)
class Metric:
    """A metric. ``tag`` names it in TensorBoard and JSON; ``prometheus``, with fixed labels, on the endpoint.

    A metric ``by`` something is a list: in JSON as it is, on the endpoint with the index as that label's value.
    """

    tag: str
    prometheus: str
    kind: Literal["gauge", "counter"]
    help: str
    labels: dict[str, str] = field(default_factory=dict)
    by: str = ""


def _loss(term: str) -> Metric:
    return Metric(f"loss/{term}", "gfgw_loss", "gauge", "Loss of the last recorded step, by term.", {"term": term})


CATALOGUE: tuple[Metric, ...] = (
    *(_loss(term) for term in ("total", "flow", "feature", "structure", "lpips", "boundary")),
    Metric("run/images", "gfgw_images_seen", "counter", "Images seen since the run began."),
    Metric("run/steps", "gfgw_steps", "counter", "Optimisation steps made since the run began."),
    Metric("speed/step_seconds", "gfgw_step_seconds", "gauge", "Mean wall time of a step since the last record."),
    Metric("speed/images_per_second", "gfgw_images_per_second", "gauge", "Images per second since the last record."),
    Metric(
        "speed/rank_step_seconds",
        "gfgw_rank_step_seconds",
        "gauge",
        "Time of a step without waiting for other ranks, mean since the last record (CPU only).",
        by="rank",
    ),
    Metric(
        "speed/slowest_ratio",
        "gfgw_slowest_ratio",
        "gauge",
        "Time of a step without waiting, of the slowest rank over the median of all.",
    ),
    Metric("speed/slowest_rank", "gfgw_slowest_rank", "gauge", "The rank whose steps take longest without waiting."),
    *(
        Metric(
            f"startup/{phase}",
            "gfgw_startup_seconds",
            "gauge",
            "Time from the start of rank 0, or of its launcher, to the end of its first step, by phase.",
            {"phase": phase},
        )
        for phase in PHASES
    ),
    Metric("optimizer/gradient_norm", "gfgw_gradient_norm", "gauge", "Gradient norm before clipping."),
    Metric("optimizer/learning_rate", "gfgw_learning_rate", "gauge", "Learning rate of the last step."),
    Metric("transport/epsilon", "gfgw_transport_epsilon", "gauge", "Entropic regularisation of the coupling."),
    Metric("transport/structure_weight", "gfgw_transport_structure_weight", "gauge", "Weight of the structure term."),
    Metric("transport/marginal_error", "gfgw_transport_marginal_error", "gauge", "L1 error of the plan's marginals."),
    Metric(
        "transport/outer_iterations", "gfgw_transport_outer_iterations", "gauge", "Linearisations of the last step."
    ),
    Metric("transport/inner_iterations", "gfgw_transport_inner_iterations", "gauge", "Sinkhorn iterations, last step."),
    Metric("transport/converged", "gfgw_transport_converged", "gauge", "1 if the last coupling met its tolerance."),
    Metric("transport/sharpness", "gfgw_transport_sharpness", "gauge", "Entropy of the plan: 0 one-to-one, 1 blind."),
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
        "CRC-32 of the last batch's row ids, streamed and matched: equal in runs that see the same.",
    ),
    Metric("run/world_size", "gfgw_world_size", "gauge", "Ranks that train."),
    Metric("run/idle_share", "gfgw_idle_share", "gauge", "Share of cell slots that run without weight."),
    Metric("run/audits", "gfgw_audits", "counter", "Steps of this process that were computed again and compared."),
    Metric(
        "run/wrong_computations",
        "gfgw_wrong_computations",
        "counter",
        "Steps that came out otherwise when they were computed again, since this start.",
    ),
    Metric(
        "run/hardware_errors",
        "gfgw_hardware_errors",
        "counter",
        "Those of them that a rank is known to have caused.",
        by="rank",
    ),
    Metric("run/skipped_steps", "gfgw_skipped_steps", "counter", "Steps whose numbers were bad, in the whole run."),
    Metric("run/rollbacks", "gfgw_rollbacks", "counter", "Returns to a checkpoint because of bad numbers, whole run."),
    Metric("run/checkpoint_saves", "gfgw_checkpoint_saves", "counter", "Checkpoints written by this process."),
    Metric("run/checkpoint_failures", "gfgw_checkpoint_failures", "counter", "Saves of this process that failed."),
    Metric("run/checkpoint_seconds", "gfgw_checkpoint_seconds", "gauge", "Wall time of the last save, in background."),
    Metric(
        "run/checkpoint_blocked_seconds",
        "gfgw_checkpoint_blocked_seconds",
        "gauge",
        "Time for which the last save held up training.",
    ),
    Metric("run/uploads", "gfgw_checkpoint_uploads", "counter", "Checkpoints uploaded by this process."),
    Metric("run/upload_failures", "gfgw_checkpoint_upload_failures", "counter", "Uploads that failed."),
    Metric("run/damaged_checkpoints", "gfgw_damaged_checkpoints", "gauge", "Checkpoints set aside as damaged."),
    Metric(
        "run/checkpoint_age_seconds",
        "gfgw_checkpoint_age_seconds",
        "gauge",
        "Time since the last checkpoint, or since start.",
    ),
)

BY_TAG = {metric.tag: metric for metric in CATALOGUE}
