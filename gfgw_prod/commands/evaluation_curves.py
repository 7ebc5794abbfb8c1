"""Curves of ``evaluate`` in a run's TensorBoard directory, one set for each way of measuring."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from gfgw_prod.checkpoint.run_settings import file_to_read
from gfgw_prod.evaluation.manifolds import Figures
from gfgw_prod.evaluation.metric_spaces import FIXED_SPACES, MetricSpaces
from gfgw_prod.process.standard_streams import log
from gfgw_prod.settings.evaluation import FIGURES


def add_to_curves(place: str, curve: str, figures: Figures, images: int) -> None:
    """Add figures to the curves called ``curve``, if ``place`` is a local run or a checkpoint of one."""
    run_dir = _run_directory(place)
    if run_dir is None:
        return
    from gfgw_prod.telemetry.event_file import EventFile

    try:
        file = EventFile(run_dir / "tensorboard" / curve)
        numbers = {name: value for name, value in figures.items() if name in FIGURES and not isinstance(value, list)}
        file.add_scalars({f"evaluation/{name}": value for name, value in numbers.items()}, images)
        file.close()
    except OSError as error:
        log(f"evaluate: {run_dir} gets no curves ({error.strerror})")


def curve_name(options: argparse.Namespace, metrics: MetricSpaces, other_data: str) -> str:
    """A name such as ``evaluate-num5000-seed0-pixels``, different for each way of measuring.

    ``other_data`` is the fingerprint of data that the run was not trained on, else empty.
    """
    spaces = {space for metric, space in metrics.by_metric.items() if metric not in FIXED_SPACES}
    parts = ["evaluate", f"num{options.num}", f"seed{options.seed}", *sorted(spaces)]
    parts += ["raw"] if options.raw else []
    parts += [f"data-{other_data[:8]}"] if other_data else []
    return "-".join(parts)


def _run_directory(place: str) -> Path | None:
    """The local run directory that a place is, or is a checkpoint of."""
    if "://" in place or os.path.isfile(place):
        return None
    given = Path(os.path.realpath(place))
    return next((each for each in (given, given.parent.parent) if os.path.isfile(file_to_read(each))), None)
