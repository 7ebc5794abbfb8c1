"""Metrics, feature spaces and settings of evaluation. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal, get_args

from gfgw_prod.settings.types import NonNegative, Section, UserPath, Whole, setting

EvaluationMetric = Literal["fd", "kid", "pr", "coverage", "memorisation", "fid", "fd-dinov2"]
SpaceName = Literal["pixels", "dinov2-small", "dinov2", "inception"]
Features = Literal["auto", "pixels", "dinov2-small", "dinov2", "inception"]
METRICS: tuple[EvaluationMetric, ...] = get_args(EvaluationMetric)
FEATURES: tuple[Features, ...] = get_args(Features)
FEWEST, MOST = 10, 10_000_000  # samples; the data set needs FEWEST images too
SEED = 0  # of evaluations while training, and by default of `gfgw evaluate`

# Figures that are one number: their metric, and which values are better.
FIGURES: dict[str, tuple[EvaluationMetric, Literal["lower", "higher", ""]]] = {
    "fd": ("fd", "lower"),
    "kid": ("kid", "lower"),
    "kid_std": ("kid", ""),
    "precision": ("pr", "higher"),
    "recall": ("pr", "higher"),
    "coverage": ("coverage", "higher"),
    "class_coverage_least": ("coverage", "higher"),
    "class_divergence": ("coverage", "lower"),
    "class_agreement": ("coverage", "higher"),
    "memorisation": ("memorisation", "lower"),
    "copies": ("memorisation", "lower"),
    "fid": ("fid", "lower"),
    "fd_dinov2": ("fd-dinov2", "lower"),
}


class EvaluationSettings(Section):
    """Evaluation while training."""

    every_kimg: NonNegative = setting(0.0, "interval between evaluations, kimg, with one at the end; 0: none")
    num: Whole = setting(5000, "number of samples", ge=FEWEST, le=MOST)
    metrics: tuple[EvaluationMetric, ...] = setting(
        ("fd", "kid", "pr", "coverage", "memorisation"), "metrics to compute", min_length=1
    )
    features: Features = setting("auto", "feature space of fd, kid, pr, coverage, memorisation; auto: the run's own")
    inception: UserPath | None = setting(None, "torch-fidelity's Inception weights; null: torch's cache")
    dinov2: UserPath | None = setting(None, "DINOv2 ViT-L/14 weights of fd-dinov2; null: the hub's cache")
