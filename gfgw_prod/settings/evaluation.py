"""Metrics, feature spaces and settings of evaluation. Imports nothing heavy."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.types import NonNegative, Section, UserPath, Whole, setting

EvaluationMetric = Literal["fd", "kid", "pr", "coverage", "memorisation", "fid", "fd-dinov2"]
# A feature space: pixels, projected-pixels, inception, dinov2 (ViT-L/14), or timm:NAME[:POOL]@SIDE.
SpaceName = str
TIMM_SPACE = re.compile(r"timm:(?P<name>[\w.-]+)(:(?P<pool>token|avg))?(@(?P<side>[1-9][0-9]{0,3}))?", re.ASCII)
FEATURES = ("auto", "run", "pixels", "dinov2", "inception", "timm:NAME")
TIMM_SIDE = 224  # pixels, where none is named
METRICS: tuple[EvaluationMetric, ...] = get_args(EvaluationMetric)
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


def as_features(text: object) -> str:
    """A choice of features in its full form; ``ValueError`` with what would be right."""
    found = TIMM_SPACE.fullmatch(text) if isinstance(text, str) else None
    if found is not None and isinstance(text, str):
        return text if found["side"] else f"{text}@{TIMM_SIDE}"
    if text not in FEATURES[:-1]:
        raise ValueError(f"be {', '.join(FEATURES)} or timm:NAME@SIDE")
    return str(text)


def checked_features(text: str, name: str) -> str:
    """``as_features`` of what a user gives as ``name``; ``UserError`` with what would be right."""
    try:
        return as_features(text)
    except ValueError as error:
        raise UserError(f"{name} should {error}, not {text[:100]!r}") from None


class EvaluationSettings(Section):
    """Evaluation while training."""

    every_kimg: NonNegative = setting(0.0, "interval between evaluations, kimg, with one at the end; 0: none")
    num: Whole = setting(5000, "number of samples", ge=FEWEST, le=MOST)
    metrics: tuple[EvaluationMetric, ...] = setting(
        ("fd", "kid", "pr", "coverage", "memorisation"), "metrics to compute", min_length=1
    )
    features: Annotated[str, BeforeValidator(as_features)] = setting(
        "auto",
        "feature space of fd, kid, pr, coverage, memorisation: pixels, dinov2, inception, a network of timm "
        "(timm:NAME, timm:NAME@SIDE), run (the run's own extractor), or auto (that, or pixels without its weights)",
    )
    weights: UserPath | None = setting(None, "weights of features timm:NAME; null: the hub's cache")
    inception: UserPath | None = setting(None, "torch-fidelity's Inception weights; null: torch's cache")
    dinov2: UserPath | None = setting(None, "DINOv2 ViT-L/14 weights of fd-dinov2; null: the hub's cache")
