"""Which figures there are, and in which feature space each is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gfgw_prod.evaluation.spaces import Files
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.evaluation import METRICS, Features, Metric, SpaceName

OF_ONE_SPACE: dict[Metric, SpaceName] = {"fid": "inception", "fd-dinov2": "dinov2"}
PIXELS: SpaceName = "pixels"
MOST_PIXELS = 4096  # numbers in an image: raw pixels say little of larger ones, and have huge covariances


@dataclass(frozen=True)
class Plan:
    """What is measured where.

    Attributes:
        spaces: by metric.
        notes: lines about what is left out or is not what it might be taken for.
    """

    spaces: dict[Metric, SpaceName]
    notes: tuple[str, ...] = ()

    @property
    def used(self) -> list[SpaceName]:
        """Every space that is needed, once."""
        return list(dict.fromkeys(self.spaces.values()))


def plan_of(
    asked: Iterable[Metric] | None, features: Features, files: Files, trained_with: SpaceName, pixels: int
) -> Plan:
    """The space of each metric that is asked for; of all that can be measured if none is.

    ``fid`` and ``fd-dinov2`` name theirs. The others are measured in ``features``; if that is ``auto``, in the space
    that the run was trained with, or raw pixels, and ``kid`` on Inception where its weights are at hand.

    Args:
        trained_with: the space of the run.
        pixels: numbers in an image.

    Raises:
        UserError: for a metric or space that was asked for by name and whose weights are not at hand.
    """
    spaces: dict[Metric, SpaceName] = {}
    notes: dict[str, list[str]] = {}  # by what is lacking
    for metric in METRICS if asked is None else dict.fromkeys(asked):
        if metric in OF_ONE_SPACE or features != "auto":
            space = OF_ONE_SPACE.get(metric) or features
            assert space != "auto"
            lacking = _lacking(space, files, pixels)
            if lacking and (asked is not None or metric not in OF_ONE_SPACE):
                raise UserError(f"{metric} cannot be measured: {lacking}")
            if lacking:
                notes.setdefault(lacking, []).append(f"{metric} is left out")
            else:
                spaces[metric] = space
            continue
        liked: list[SpaceName] = ["inception"] if metric == "kid" else []
        best = [*liked, trained_with][0]
        found = next((each for each in [*liked, trained_with, PIXELS] if not _lacking(each, files, pixels)), None)
        if found is None:
            raise UserError(f"{metric} cannot be measured: {_lacking(trained_with, files, pixels)}")
        spaces[metric] = found
        if found != best and (lacking := _lacking(best, files, pixels)):
            notes.setdefault(lacking, []).append(f"{metric} is measured on {found}")
    return Plan(spaces, tuple(f"{', '.join(told)}: {lacking}" for lacking, told in notes.items()))


def _lacking(space: SpaceName, files: Files, pixels: int) -> str | None:
    """Why a space cannot be used, and what would help."""
    if space == "pixels":
        if pixels <= MOST_PIXELS:
            return None
        return f"raw pixels are for images of at most {MOST_PIXELS:,} numbers, not {pixels:,}; name another --features"
    return None if files.has(space) else f"the weights of {space} are not at hand; {files.wanted(space)}"
