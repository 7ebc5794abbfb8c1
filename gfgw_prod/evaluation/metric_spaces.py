"""The feature space in which each metric is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gfgw_prod.evaluation.spaces import MOST_PIXELS, PIXELS, PROJECTED_PIXELS, WeightFiles
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.evaluation import METRICS, EvaluationMetric, SpaceName

FIXED_SPACES: dict[EvaluationMetric, SpaceName] = {"fid": "inception", "fd-dinov2": "dinov2"}


@dataclass(frozen=True)
class MetricSpaces:
    """The feature space of each metric that is measured."""

    by_metric: dict[EvaluationMetric, SpaceName]
    notes: tuple[str, ...] = ()  # for each file whose absence leaves a metric out or moves it to another space

    def __str__(self) -> str:
        """Which metrics are measured in which space, in words."""
        return "; ".join(
            f"{', '.join(metric for metric, its in self.by_metric.items() if its == space)} in {space}"
            for space in self.used
        )

    @property
    def used(self) -> list[SpaceName]:
        """Each space that is needed, once."""
        return list(dict.fromkeys(self.by_metric.values()))


def choose_spaces(
    asked: Iterable[EvaluationMetric] | None,
    features: str,
    files: WeightFiles,
    trained_with: SpaceName,
    pixels: int,
) -> MetricSpaces:
    """Choose the space of each metric in ``asked``, or of all that can be measured if it is ``None``.

    ``fid`` and ``fd-dinov2`` have a fixed space. The others use ``features``; if that is ``run``, the space that the
    run was trained with; if it is ``auto``, that space or, without its weights, raw pixels. With ``auto``, ``kid``
    prefers Inception.

    Args:
        trained_with: space of the run's feature extractor.
        pixels: numbers in an image.

    Raises:
        UserError: if the weights of a metric or space that was named are missing.
    """
    in_pixels = PROJECTED_PIXELS if pixels > MOST_PIXELS else PIXELS
    named = trained_with if features in ("run", "auto") else features
    own = in_pixels if named == PIXELS else named
    spaces: dict[EvaluationMetric, SpaceName] = {}
    notes: dict[str, list[str]] = {}  # by what is missing
    for metric in METRICS if asked is None else dict.fromkeys(asked):
        if metric in FIXED_SPACES or features != "auto":
            space = FIXED_SPACES.get(metric, own)
            missing = _missing(space, files)
            if missing and (asked is not None or metric not in FIXED_SPACES):
                raise UserError(f"{metric} cannot be measured: {missing}")
            if missing:
                notes.setdefault(missing, []).append(f"{metric} is left out")
            else:
                spaces[metric] = space
            continue
        preferred = ["inception", own] if metric == "kid" else [own]
        found = next((each for each in preferred if not _missing(each, files)), in_pixels)
        spaces[metric] = found
        if missing := _missing(preferred[0], files):
            notes.setdefault(missing, []).append(f"{metric} is measured on {found}")
    return MetricSpaces(spaces, tuple(f"{', '.join(effects)}: {missing}" for missing, effects in notes.items()))


def _missing(space: SpaceName, files: WeightFiles) -> str | None:
    """Why a space cannot be used, and what would help; ``None`` if it can."""
    return None if files.has(space) else f"the weights of {space} are missing; {files.wanted(space)}"
