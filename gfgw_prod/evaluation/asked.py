"""What ``gfgw evaluate`` is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gfgw_prod.evaluation.names import Features, Metric


@dataclass(frozen=True)
class Asked:
    """What the command line asks for; ``None`` is the run's own, or all that can be measured."""

    metrics: Sequence[Metric] | None
    features: Features
    num: int
    seed: int
    steps: int
    raw: bool
    as_json: bool
    device: str
    data_path: Path | None
    inception: Path | None
    dinov2: Path | None
    dinov2_small: Path | None = None
    other_data: bool = False
