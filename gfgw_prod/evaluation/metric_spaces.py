"""The feature space in which each metric is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gfgw_prod.evaluation.spaces import WeightFiles
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.evaluation import METRICS, EvaluationMetric, Features, SpaceName

FIXED_SPACES: dict[EvaluationMetric, SpaceName] = {"fid": "inception", "fd-dinov2": "dinov2"}
PIXELS: SpaceName = "pixels"
MOST_PIXELS = 4096  # numbers in an image: raw pixels say little about larger ones, and their covariances are huge


@dataclass(frozen=True)
class MetricSpaces:
    """The feature space of each metric that is measured."""

    by_metric: dict[EvaluationMetric, SpaceName]
    notes: tuple[str, ...] = ()  # for each file whose absence leaves a metric out or moves it to another space

    @property
    def used(self) -> list[SpaceName]:
        """Each space that is needed, once."""
        return list(dict.fromkeys(self.by_metric.values()))


def choose_spaces(
    asked: Iterable[EvaluationMetric] | None,
    features: Features,
    files: WeightFiles,
    trained_with: SpaceName,
    pixels: int,
) -> MetricSpaces:
    """Choose the space of each metric in ``asked``, or of all that can be measured if it is ``None``.

    ``fid`` and ``fd-dinov2`` have a fixed space. The others use ``features``; if that is ``auto``, the space that the
    run was trained with, else raw pixels. With ``auto``, ``kid`` prefers Inception.

    Args:
        trained_with: space of the run's feature extractor.
        pixels: numbers in an image.

    Raises:
        UserError: if the weights of a metric or space that was named are missing, or nothing is left to measure with.
    """
    spaces: dict[EvaluationMetric, SpaceName] = {}
    notes: dict[str, list[str]] = {}  # by what is missing
    for metric in METRICS if asked is None else dict.fromkeys(asked):
        if metric in FIXED_SPACES or features != "auto":
            space = FIXED_SPACES.get(metric) or features
            assert space != "auto"
            missing = _missing(space, files, pixels)
            if missing and (asked is not None or metric not in FIXED_SPACES):
                raise UserError(f"{metric} cannot be measured: {missing}")
            if missing:
                notes.setdefault(missing, []).append(f"{metric} is left out")
            else:
                spaces[metric] = space
            continue
        preferred: list[SpaceName] = ["inception", trained_with] if metric == "kid" else [trained_with]
        found = next((each for each in [*preferred, PIXELS] if not _missing(each, files, pixels)), None)
        if found is None:
            raise UserError(f"{metric} cannot be measured: {_missing(trained_with, files, pixels)}")
        spaces[metric] = found
        if found != preferred[0] and (missing := _missing(preferred[0], files, pixels)):
            notes.setdefault(missing, []).append(f"{metric} is measured on {found}")
    return MetricSpaces(spaces, tuple(f"{', '.join(effects)}: {missing}" for missing, effects in notes.items()))


def _missing(space: SpaceName, files: WeightFiles, pixels: int) -> str | None:
    """Why a space cannot be used, and what would help; ``None`` if it can."""
    if space == "pixels":
        if pixels <= MOST_PIXELS:
            return None
        return f"raw pixels are for images of at most {MOST_PIXELS:,} numbers, not {pixels:,}; name another --features"
    return None if files.has(space) else f"the weights of {space} are missing; {files.wanted(space)}"
