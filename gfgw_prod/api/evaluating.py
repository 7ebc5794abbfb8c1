"""Measures a trained generator, or other samples, against a data set: for the command ``evaluate``, and from Python."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gfgw_prod.api.process_state import process_restored
from gfgw_prod.data.sources import Table, open_table
from gfgw_prod.distributed.world import World
from gfgw_prod.evaluation.evaluator import Evaluator
from gfgw_prod.evaluation.manifolds import Figures
from gfgw_prod.evaluation.metric_spaces import MetricSpaces, choose_spaces
from gfgw_prod.evaluation.sample_files import halves_of, read_samples
from gfgw_prod.evaluation.spaces import PIXELS, Space, WeightFiles, build_space, trained_with
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.meter import Meter
from gfgw_prod.process.standard_streams import log
from gfgw_prod.sampling.limits import check_drawing
from gfgw_prod.sampling.trained import TrainedGenerator, read_trained
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.data import BUILT_IN, DataSettings
from gfgw_prod.settings.evaluation import (
    FEWEST,
    FIGURES,
    METRICS,
    TIMM_SPACE,
    EvaluationMetric,
    SpaceName,
    checked_features,
)
from gfgw_prod.settings.reading import resolve

SECTIONS = ("run", "generator", "data", "features")  # of the run's settings that evaluation uses


@dataclass(frozen=True)
class Evaluation:
    """What to measure, and how; the options of ``gfgw evaluate``."""

    place: str | None
    samples: Path | None = None
    settings: Mapping[str, Any] | None = None  # that name the data set and the features, without a place
    halves: bool = False
    metrics: tuple[EvaluationMetric, ...] | None = None
    features: str = "auto"
    num: int = 5000
    seed: int = 0
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
        trained: the generator. With ``samples``, the one whose data set they were compared with, if one was named.
        num: of samples.
        data: source, rows and SHA-256 of the data set, and the SHA-256 of the one trained on.
    """

    figures: Figures
    trained: TrainedGenerator | None
    num: int
    metrics: MetricSpaces
    data: dict[str, Any]
    spaces: dict[SpaceName, Space]
    world: World


def evaluate(
    place: str | Path | None = None,
    *,
    samples: str | Path | None = None,
    config: Config | None = None,
    halves: bool = False,
    metrics: Sequence[EvaluationMetric] | None = None,
    features: str = "auto",
    num: int = 5000,
    seed: int = 0,
    raw: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    data_path: str | Path | None = None,
    other_data: bool = False,
) -> Figures:
    """Measure ``num`` samples of a trained generator, or images from files, as ``gfgw evaluate`` does.

    Args:
        place: run directory, one of its checkpoints, or a ``.safetensors`` file of ``gfgw export``.
        samples: a folder of images, measured in place of the generator's, against the same data.
        config: settings that name the data and the features, for ``samples`` without a ``place``.
        halves: also compare two halves of the data; their figures are named ``halves_fd`` and so on.
        metrics: some of fd, kid, pr, coverage, memorisation, fid, fd-dinov2; ``None`` is all that have their weights.
        features: feature space of the first five, as in docs/evaluation.md; ``auto`` is the run's own.
        data_path: where the data set is now.
        other_data: allow data that the run was not trained on.

    Returns:
        The figures by name, as in docs/evaluation.md.

    Raises:
        UserError: for an argument that is wrong, and missing weights, data or checkpoints; in one line.
    """
    check_drawing(num, seed, least=FEWEST)
    for each in metrics or ():
        if each not in METRICS:
            raise UserError(f"metrics should be among {', '.join(METRICS)}, not {each!r}")
    evaluation = Evaluation(
        place=None if place is None else os.fspath(place),
        samples=None if samples is None else Path(samples),
        settings=None if config is None else config.model_dump(),
        halves=halves,
        metrics=None if metrics is None else tuple(metrics),
        features=checked_features(features, "features"),
        num=num,
        seed=seed,
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
    if (evaluation.place is None) == (evaluation.settings is None):
        raise UserError("evaluate takes a run, or samples with the configuration of their data: --samples and --config")
    if evaluation.samples is None and evaluation.place is None:
        raise UserError("evaluate --config goes with --samples, the images to measure")
    trained = None if evaluation.place is None else read_trained(evaluation.place, raw=evaluation.raw)
    config = _configuration((evaluation.settings or {}) if trained is None else trained.config, evaluation)
    network = evaluation.features if TIMM_SPACE.fullmatch(evaluation.features) else trained_with(config)
    if evaluation.weights is not None and network == PIXELS:
        raise UserError("--weights are those of a network: name it as --features timm:NAME")
    files = WeightFiles.of_run(config).replaced_by(
        {"inception": evaluation.inception, "dinov2": evaluation.dinov2, network: evaluation.weights}
    )
    with World.joined(config.run.device, config.run.threads, config.distributed.timeout_seconds) as world:
        return _measure(trained, config, files, evaluation, world)


def _configuration(recorded: Mapping[str, Any], evaluation: Evaluation) -> Config:
    """The recorded settings, as far as they matter here, with those of the evaluation."""
    own = {section: recorded[section] for section in SECTIONS if section in recorded}
    given: dict[str, Any] = {"run": {"device": evaluation.device}}
    if evaluation.data_path is not None:
        source = own.get("data", {}).get("source")
        if source in BUILT_IN:
            raise UserError(f"--data-path should be left out: the run's data.source {source} is built in")
        given["data"] = {"path": evaluation.data_path}
    files = recorded.get("evaluation", {})
    weights = {name: files[name] for name in ("inception", "dinov2") if name in files}
    return resolve(own, {"evaluation": weights}, given)


def _open_data(settings: DataSettings, evaluation: Evaluation, world: World, log_once: Callable[[str], None]) -> Table:
    try:
        return open_table(settings, world, log_once)
    except UserError as error:
        if evaluation.data_path is not None or settings.source in BUILT_IN:
            raise
        raise UserError(f"{error}; evaluate --data-path says where the data set is now") from None


def _check_data(table: Table, trained: TrainedGenerator | None, *, allow_other: bool) -> str:
    """Check that the data set is the one of the training, or of the same form if another is allowed.

    Returns:
        The data set's fingerprint.

    Raises:
        UserError: naming the difference.
    """
    if trained is None:
        return table.fingerprint()
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
    trained: TrainedGenerator | None, config: Config, files: WeightFiles, evaluation: Evaluation, world: World
) -> Measurement:
    def log_once(line: str) -> None:
        if world.is_main:
            log(f"evaluate: {line}")

    table = _open_data(config.data, evaluation, world, log_once)
    fingerprint = world.on_all_ranks(lambda: _check_data(table, trained, allow_other=evaluation.other_data))
    place = evaluation.samples
    samples = None if place is None else world.on_all_ranks(lambda: read_samples(place, table, config.data.background))
    halves = world.on_all_ranks(lambda: halves_of(table, evaluation.seed)) if evaluation.halves else None
    pixels = math.prod(table.image_shape)
    metrics = world.on_all_ranks(
        lambda: choose_spaces(evaluation.metrics, evaluation.features, files, trained_with(config), pixels)
    )
    by_rank = world.all_gather_object(metrics.by_metric)
    for rank, chosen in enumerate(by_rank):
        if chosen != by_rank[0]:  # caches of nodes may differ
            raise UserError(f"rank {rank} finds other weights than rank 0; name files that all ranks see")
    for note in metrics.notes:
        log_once(note)
    spaces = world.on_all_ranks(
        lambda: {name: build_space(name, files, table.image_shape, log_once).to(world.device) for name in metrics.used}
    )
    with Meter("measuring", enabled=world.is_main) as meter:
        evaluator_of = partial(
            Evaluator, metrics=metrics, spaces=spaces, world=world, seed=evaluation.seed, on_progress=meter.show
        )
        evaluator = world.on_all_ranks(
            lambda: evaluator_of(
                table,
                num=evaluation.num,
                conditional=config.generator.conditional,
            )
        )
        if samples is not None:
            num, figures = len(samples), evaluator.measure_images(samples)
        else:
            assert trained is not None
            num, figures = evaluation.num, evaluator.measure(world.on_all_ranks(trained.build).to(world.device))
        if halves is not None:
            first, second = halves
            evaluator = evaluator_of(second)
            found = evaluator.measure_images(first)
            figures |= {f"halves_{name}": value for name, value in found.items() if name in FIGURES}
    for caution in evaluator.cautions(num):
        log_once(caution)
    data = {
        "source": config.data.source,
        "rows": len(table),
        "sha256": fingerprint,
        "trained_on_sha256": (trained.data_fingerprint or None) if trained else None,
    }
    return Measurement(figures, trained, num, metrics, data, spaces, world)
