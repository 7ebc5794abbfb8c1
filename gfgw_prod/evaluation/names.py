"""What can be measured, and in which feature spaces. Imports nothing heavy: settings are made of it."""

from __future__ import annotations

from typing import Literal, get_args

Metric = Literal["fd", "kid", "pr", "coverage", "memorisation", "fid", "fd-dinov2"]
SpaceName = Literal["pixels", "dinov2-small", "dinov2", "inception"]
Features = Literal["auto", "pixels", "dinov2-small", "dinov2", "inception"]
METRICS: tuple[Metric, ...] = get_args(Metric)
FEATURES: tuple[Features, ...] = get_args(Features)
FEWEST, MOST = 10, 10_000_000  # samples; of data there must be as many as FEWEST

# Figures that are one number: the metric they belong to, and whether low or high is good.
FIGURES: dict[str, tuple[Metric, Literal["lower", "higher", ""]]] = {
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
