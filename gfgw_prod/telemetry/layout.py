"""What TensorBoard shows of a run: charts grouped by question, and the settings and results that compare runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gfgw_prod.process.restart_causes import CAUSES
from gfgw_prod.settings.nested import flatten
from gfgw_prod.telemetry.catalogue import LOSS_TERMS, TOTAL_AT_ONE, TOTAL_BEFORE
from gfgw_prod.telemetry.phases import STEP_PHASES
from gfgw_prod.telemetry.startup import PHASES

NOT_CHARTED = {"data/batch_crc"}  # a checksum: noise as a curve, and the first one by name
COMPARED_SETTINGS = (
    *("seed", "data.source", "train.total_kimg", "train.batch_size", "train.one_step_share", "train.precision"),
    *("optimizer.lr", "ema.halflife_kimg", "generator.model_channels", "generator.channel_mult"),
    *("features.extractor", "transport.scope", "transport.target", "transport.epsilon", "transport.structure_weight"),
    *("loss.feature", "loss.structure", "loss.energy", "loss.lpips", "consistency.stages"),
    *("evaluation.features", "evaluation.num"),  # figures of other features or numbers do not compare
)
COMPARED_METRICS = ("evaluation/fd", "evaluation/fid", "loss/total", "speed/images_per_second")
CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "1 Does it learn?": {
        "loss, of steps at t = 1 and before": (f"loss/{TOTAL_AT_ONE}", f"loss/{TOTAL_BEFORE}"),
        "loss terms": tuple(f"loss/{term}" for term in LOSS_TERMS),
        "gradient norm before clipping": ("optimizer/gradient_norm",),
    },
    "2 Are samples good?": {
        "distance to the data": ("evaluation/fd", "evaluation/fid", "evaluation/fd_dinov2", "evaluation/kid"),
        "precision, recall, coverage": ("evaluation/precision", "evaluation/recall", "evaluation/coverage"),
        "share of samples that are copies": ("evaluation/copies",),
    },
    "3 How sharp is the coupling?": {
        "sharpness of the plan, share of the bank in use, correlation of noise and targets": (
            *("transport/sharpness", "transport/bank_share", "transport/noise_correlation"),
        ),
        "marginal error": ("transport/marginal_error",),
        "iterations": ("transport/outer_iterations", "transport/inner_iterations"),
    },
    "4 Where do the schedules stand?": {
        "learning rate": ("optimizer/learning_rate",),
        "epsilon": ("transport/epsilon",),
        "structure weight": ("transport/structure_weight",),
        "range of t": ("schedule/time_low", "schedule/time_high"),
        "half-life of averaged weights, images": ("optimizer/ema_halflife_images",),
    },
    "5 How fast is it?": {
        "images per second": ("speed/images_per_second",),
        "phases of a step, seconds": tuple(f"speed/phase/{phase}" for phase in STEP_PHASES),
        "share of time that steps wait for images": ("speed/data_wait_ratio",),
        "slowest rank over the median": ("speed/slowest_ratio",),
        "time to the first step, seconds": tuple(f"startup/{phase}" for phase in PHASES),
    },
    "6 Is it safe?": {
        "goodput": ("run/goodput",),
        "images lost": ("run/lost_images",),
        "restarts by cause": tuple(f"run/restarts/{cause}" for cause in CAUSES),
        "time of a save, seconds": ("run/checkpoint_seconds", "run/checkpoint_blocked_seconds"),
        "steps skipped, audited, computed wrongly; rollbacks": (
            *("run/skipped_steps", "run/rollbacks", "run/audits", "run/wrong_computations"),
        ),
    },
}


def custom_scalars() -> dict[str, dict[str, list[str | list[str]]]]:
    """The layout for torch's ``custom_scalars``, which takes regular expressions matched from the start."""
    return {
        category: {title: ["Multiline", [f"{tag}$" for tag in tags]] for title, tags in charts.items()}
        for category, charts in CHARTS.items()
    }


def compared_settings(settings: Mapping[str, Any]) -> dict[str, str | float]:
    """The settings that TensorBoard's HPARAMS tab compares, by name, of all settings nested by section."""
    found = flatten(settings)
    compared = {name: found[name] for name in COMPARED_SETTINGS}
    return {name: value if isinstance(value, str | float | int) else str(value) for name, value in compared.items()}
