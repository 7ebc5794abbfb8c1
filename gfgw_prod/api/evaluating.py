"""Measures a trained generator against its data set: for the command ``evaluate``, and from Python."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gfgw_prod.api.process_state import process_restored
from gfgw_prod.data.sources import Table, open_table
from gfgw_prod.distributed.world import World
from gfgw_prod.evaluation.evaluator import Evaluator
from gfgw_prod.evaluation.manifolds import Figures
from gfgw_prod.evaluation.metric_spaces import MetricSpaces, choose_spaces
from gfgw_prod.evaluation.spaces import PIXELS, Space, WeightFiles, build_space, trained_with
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.meter import Meter
from gfgw_prod.process.standard_streams import log
from gfgw_prod.sampling.limits import check_drawing
from gfgw_prod.sampling.trained import TrainedGenerator, read_trained
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.data import BUILT_IN, DataSettings
from gfgw_prod.settings.evaluation import FEWEST, METRICS, TIMM_SPACE, EvaluationMetric, SpaceName, checked_features
from gfgw_prod.settings.reading import resolve

SECTIONS = ("run", "generator", "data", "features")  # of the run's settings that evaluation uses


@dataclass(frozen=True)
class Evaluation:
    """What to measure, and how; the options of ``gfgw evaluate``."""

    place: str
    metrics: tuple[EvaluationMetric, ...] | None = None
    features: str = "auto"
    num: int = 5000
    seed: int = 0
    steps: int = 1
    raw: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data_path: Path | None = None
    other_data: bool = False
    weights: Path | None = None
    inception: Path | None = None
    dinov2: Path | None = None


@dataclass(frozen=True)
class Measurement:
    """The figures, the same on all ranks, and what they were measured with.

    Attributes:
        data: source, rows and SHA-256 of the data set, and the SHA-256 of the one trained on.
    """

    figures: Figures
    trained: TrainedGenerator
    metrics: MetricSpaces
    data: dict[str, Any]
    spaces: dict[SpaceName, Space]
    world: World

    @property
    def other_data(self) -> bool:
        """Whether the generator was trained on other data."""
        return self.trained.data_fingerprint not in ("", self.data["sha256"])


def evaluate(
    place: str | Path,
    *,
    metrics: Sequence[EvaluationMetric] | None = None,
    features: str = "auto",
    num: int = 5000,
    seed: int = 0,
    steps: int = 1,
    raw: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    data_path: str | Path | None = None,
    other_data: bool = False,
) -> Figures:
    """Measure ``num`` samples of a trained generator against its data set, as ``gfgw evaluate`` does.

    Args:
        place: run directory, one of its checkpoints, or a ``.safetensors`` file of ``gfgw export``.
        metrics: some of fd, kid, pr, coverage, memorisation, fid, fd-dinov2; ``None`` is all that have their weights.
        features: feature space of the first five, as in docs/evaluation.md; ``auto`` is the run's own.
        data_path: where the data set is now.
        other_data: allow data that the run was not trained on.

    Returns:
        The figures by name, as in docs/evaluation.md.

    Raises:
        UserError: for an argument that is wrong, and missing weights, data or checkpoints; in one line.
    """
    check_drawing(num, steps, seed, least=FEWEST)
    for each in metrics or ():
        if each not in METRICS:
            raise UserError(f"metrics should be among {', '.join(METRICS)}, not {each!r}")
    evaluation = Evaluation(
        place=os.fspath(place),
        metrics=None if metrics is None else tuple(metrics),
        features=checked_features(features, "features"),
        num=num,
        seed=seed,
        steps=steps,
        raw=raw,
        device=device,
        data_path=None if data_path is None else Path(data_path),
        other_data=other_data,
    )
    with process_restored():
        return measure(evaluation).figures


def measure(evaluation: Evaluation) -> Measurement:
    """Measure, alone or on every rank of a launcher. Notes on missing weights are logged.

    Raises:
        UserError: if the checkpoint, the data, or weights that were named are missing.
    """
    trained = read_trained(evaluation.place, raw=evaluation.raw)
    config = _configuration(trained, evaluation)
    network = evaluation.features if TIMM_SPACE.fullmatch(evaluation.features) else trained_with(config)
    if evaluation.weights is not None and network == PIXELS:
        raise UserError("--weights are those of a network: name it as --features timm:NAME")
    files = WeightFiles.of_run(config).replaced_by(
        {"inception": evaluation.inception, "dinov2": evaluation.dinov2, network: evaluation.weights}
    )
    pixels = math.prod(trained.image_shape)
    metrics = choose_spaces(evaluation.metrics, evaluation.features, files, trained_with(config), pixels)
    with World.joined(config.run.device, config.run.threads, config.distributed.timeout_seconds) as world:
        return _measure(trained, config, metrics, files, evaluation, world)


def _configuration(trained: TrainedGenerator, evaluation: Evaluation) -> Config:
    """The run's settings, as far as they matter here, with those of the evaluation."""
    own = {section: trained.config[section] for section in SECTIONS if section in trained.config}
    given: dict[str, Any] = {"run": {"device": evaluation.device}}
    if evaluation.data_path is not None:
        source = own.get("data", {}).get("source")
        if source in BUILT_IN:
            raise UserError(f"--data-path should be left out: the run's data.source {source} is built in")
        given["data"] = {"path": evaluation.data_path}
    recorded = trained.config.get("evaluation", {})
    weights = {name: recorded[name] for name in ("inception", "dinov2") if name in recorded}
    return resolve(own, {"evaluation": weights}, given)


def _open_data(settings: DataSettings, evaluation: Evaluation, world: World, log_once: Callable[[str], None]) -> Table:
    try:
        return open_table(settings, world, log_once)
    except UserError as error:
        if evaluation.data_path is not None or settings.source in BUILT_IN:
            raise
        raise UserError(f"{error}; evaluate --data-path says where the data set is now") from None


def _check_data(table: Table, trained: TrainedGenerator, *, allow_other: bool) -> str:
    """Check that the data set is the one of the training, or of the same form if another is allowed.

    Returns:
        The data set's fingerprint.

    Raises:
        UserError: naming the difference.
    """
    for what, found, expected in (
        ("images of (c, h, w)", table.image_shape, trained.image_shape),
        ("classes:", table.num_classes, trained.num_classes),
    ):
        if found != expected:
            raise UserError(f"the data set has {what} {found}, the generator {expected}; name its own with --data-path")
    fingerprint, own = table.fingerprint(), trained.data_fingerprint
    if not allow_other and own and fingerprint != own:
        raise UserError(
            f"the generator was trained on another data set, with fingerprint {own}; this one has {fingerprint}; "
            "name its own with --data-path, or allow this one with --other-data"
        )
    return fingerprint


def _measure(
    trained: TrainedGenerator,
    config: Config,
    metrics: MetricSpaces,
    files: WeightFiles,
    evaluation: Evaluation,
    world: World,
) -> Measurement:
    by_rank = world.all_gather_object(metrics.by_metric)
    for rank, chosen in enumerate(by_rank):
        if chosen != by_rank[0]:  # caches of nodes may differ
            raise UserError(f"rank {rank} finds other weights than rank 0; name files that all ranks see")

    def log_once(line: str) -> None:
        if world.is_main:
            log(f"evaluate: {line}")

    for note in metrics.notes:
        log_once(note)
    table = _open_data(config.data, evaluation, world, log_once)
    fingerprint = world.on_all_ranks(lambda: _check_data(table, trained, allow_other=evaluation.other_data))
    spaces = world.on_all_ranks(
        lambda: {name: build_space(name, files, table.image_shape, log_once).to(world.device) for name in metrics.used}
    )
    with Meter("measuring", enabled=world.is_main) as meter:
        evaluator = world.on_all_ranks(
            lambda: Evaluator(
                table,
                metrics,
                spaces,
                world,
                num=evaluation.num,
                seed=evaluation.seed,
                steps=evaluation.steps,
                least_time=trained.least_time,
                conditional=config.generator.conditional,
                on_progress=meter.show,
            )
        )
        figures = evaluator.measure(world.on_all_ranks(trained.build).to(world.device))
    data = {
        "source": config.data.source,
        "rows": len(table),
        "sha256": fingerprint,
        "trained_on_sha256": trained.data_fingerprint or None,
    }
    return Measurement(figures, trained, metrics, data, spaces, world)
