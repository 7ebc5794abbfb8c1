"""Curves of ``evaluate`` in a run's TensorBoard directory: one for figures that were measured as the run says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gfgw_prod.commands.options import Asked
from gfgw_prod.evaluation.manifolds import Figures
from gfgw_prod.evaluation.metric_spaces import FIXED_SPACES, MetricSpaces
from gfgw_prod.sampling.trained import TrainedGenerator
from gfgw_prod.settings.evaluation import FIGURES, EvaluationSettings, SpaceName


def add_to_curves(place: str, trained: TrainedGenerator, figures: Figures, name: str) -> None:
    """Adds the figures to the curves called ``name`` beside those of the run itself, if there is a run here."""
    run_dir = _run_directory(place)
    if run_dir is None:
        return
    from torch.utils.tensorboard import SummaryWriter

    try:
        writer = SummaryWriter(str(run_dir / "tensorboard" / name))
        for figure in FIGURES:
            if figure in figures:
                writer.add_scalar(f"evaluation/{figure}", figures[figure], trained.images)
        writer.close()
    except OSError as error:
        print(f"evaluate: {run_dir} gets no curves ({error.strerror})", file=sys.stderr, flush=True)


def curve_name(trained: TrainedGenerator, asked: Asked, plan: MetricSpaces, trained_with: SpaceName, data: str) -> str:
    """``evaluate``, and what is not as the run's settings say: figures measured otherwise are of no one curve.

    Args:
        trained_with: the space of the run.
        data: fingerprint of the data that samples were compared with.
    """
    defaults = EvaluationSettings()
    recorded = {"num": defaults.num, "seed": defaults.seed, "features": defaults.features}
    recorded |= trained.config.get("evaluation", {})
    own = trained_with if recorded["features"] == "auto" else recorded["features"]
    # For want of weights auto may be another space than the run's; that of kid is Inception's where it is at hand.
    spaces = {space for metric, space in plan.by_metric.items() if metric not in FIXED_SPACES and metric != "kid"}
    differs = [
        *([f"num{asked.num}"] if asked.num != recorded["num"] else []),
        *([f"seed{asked.seed}"] if asked.seed != recorded["seed"] else []),
        *(["raw"] if asked.raw else []),
        *([f"steps{asked.steps}"] if asked.steps > 1 else []),
        *(sorted(spaces - {own}) if asked.features == recorded["features"] else [asked.features]),
        *([f"data-{data[:8]}"] if trained.data_fingerprint not in ("", data) else []),
    ]
    return "-".join(["evaluate", *differs])


def _run_directory(place: str) -> Path | None:
    """The local run directory that a place is, or is a checkpoint of."""
    if "://" in place or os.path.isfile(place):
        return None
    given = Path(os.path.realpath(place))
    return next((each for each in (given, given.parent.parent) if os.path.isfile(each / "config.yaml")), None)
