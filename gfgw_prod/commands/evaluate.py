"""The command ``evaluate``: how good a trained generator's samples are, as a table, JSON and curves."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gfgw_prod.commands.options import add_drawing, add_json, add_place, check_drawing, path
from gfgw_prod.distributed.torchrun import rank_environment
from gfgw_prod.process.exit_codes import FINISHED, UserError
from gfgw_prod.process.standard_streams import log
from gfgw_prod.settings.data import BUILT_IN, DataSettings
from gfgw_prod.settings.evaluation import FEATURES, FEWEST, FIGURES, METRICS, EvaluationMetric
from gfgw_prod.settings.reading import resolve
from gfgw_prod.settings.removed import without_removed

if TYPE_CHECKING:
    from gfgw_prod.data.sources import Table
    from gfgw_prod.distributed.world import World
    from gfgw_prod.evaluation.manifolds import Figures
    from gfgw_prod.evaluation.metric_spaces import MetricSpaces
    from gfgw_prod.evaluation.spaces import WeightFiles
    from gfgw_prod.sampling.trained import TrainedGenerator
    from gfgw_prod.settings.config import Config

SECTIONS = ("run", "generator", "data", "features")  # of the run's settings that evaluation uses


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``evaluate``."""
    add_place(parser)
    parser.add_argument("--metrics", metavar="LIST", help=f"of {','.join(METRICS)} (default: all that have weights)")
    parser.add_argument(
        "--features",
        choices=FEATURES,
        default="auto",
        help="space of fd, kid, pr, coverage and memorisation (auto: the run's own; for kid inception if available)",
    )
    add_drawing(parser, num=5000)
    add_json(parser)
    for name, what in (
        ("--inception", "torch-fidelity's Inception weights"),
        ("--dinov2", "timm's DINOv2 ViT-L/14 weights"),
        ("--dinov2-small", "timm's DINOv2 ViT-S/14 weights, where the run's features.weights are now"),
        ("--data-path", "where the data set is now (default: data.path of the run)"),
    ):
        parser.add_argument(name, type=path, metavar="PATH", help=what)
    parser.add_argument("--other-data", action="store_true", help="allow data that the run was not trained on")


def run(options: argparse.Namespace) -> int:
    """Measure the generator and print the figures, alone or on every rank of a launcher; return the exit code.

    Raises:
        UserError: if an option is wrong, or the checkpoint, the data, or weights that were named are missing.
    """
    check_drawing(options, least=FEWEST)
    asked = None if options.metrics is None else metric_list(options.metrics)
    rank_environment()  # refuses a malformed environment before torch is imported
    from gfgw_prod.distributed.world import World
    from gfgw_prod.evaluation.metric_spaces import choose_spaces
    from gfgw_prod.evaluation.spaces import WeightFiles, trained_with
    from gfgw_prod.sampling.trained import read_trained

    trained = read_trained(options.place, raw=options.raw)
    config = _configuration(trained, options)
    files = WeightFiles.of_run(config).replaced_by(
        {"inception": options.inception, "dinov2": options.dinov2, "dinov2-small": options.dinov2_small}
    )
    pixels = math.prod(trained.image_shape)
    metrics = choose_spaces(asked, options.features, files, trained_with(config), pixels)
    with World.joined(config.run.device, config.run.threads, config.distributed.timeout_seconds) as world:
        _measure(trained, config, metrics, files, options, world)
    return FINISHED


def metric_list(text: str) -> tuple[EvaluationMetric, ...]:
    """Metrics of a list such as ``fd,kid``, each once.

    Raises:
        UserError: for an unknown metric.
    """
    known: dict[str, EvaluationMetric] = {metric: metric for metric in METRICS}
    words = [word.strip().replace("_", "-") for word in text.split(",")]
    for word in words:
        if word not in known:
            raise UserError(f"--metrics should be some of {', '.join(METRICS)}, not {word[:100]!r}")
    return tuple(dict.fromkeys(known[word] for word in words))


def _configuration(trained: TrainedGenerator, options: argparse.Namespace) -> Config:
    """The run's settings, as far as they matter here, with those of the command line."""
    own = {section: trained.config[section] for section in SECTIONS if section in trained.config}
    given: dict[str, Any] = {"run": {"device": options.device}}
    if options.data_path is not None:
        source = own.get("data", {}).get("source")
        if source in BUILT_IN:
            raise UserError(f"--data-path should be left out: the run's data.source {source} is built in")
        given["data"] = {"path": options.data_path}
    recorded = trained.config.get("evaluation", {})
    weights = {name: recorded[name] for name in ("inception", "dinov2") if name in recorded}
    return resolve(without_removed(own), {"evaluation": weights}, given)


def _open_data(
    settings: DataSettings, options: argparse.Namespace, world: World, log_once: Callable[[str], None]
) -> Table:
    from gfgw_prod.data.sources import open_table

    try:
        return open_table(settings, world, log_once)
    except UserError as error:
        if options.data_path is not None or settings.source in BUILT_IN:
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
    options: argparse.Namespace,
    world: World,
) -> None:
    from gfgw_prod.commands.evaluation_curves import add_to_curves, curve_name
    from gfgw_prod.evaluation.evaluator import Evaluator
    from gfgw_prod.evaluation.spaces import build_space
    from gfgw_prod.process.meter import Meter

    started = time.monotonic()
    by_rank = world.all_gather_object(metrics.by_metric)
    for rank, chosen in enumerate(by_rank):
        if chosen != by_rank[0]:  # caches of nodes may differ
            raise UserError(f"rank {rank} finds other weights than rank 0; name files that all ranks see")

    def log_once(line: str) -> None:
        if world.is_main:
            log(f"evaluate: {line}")

    for note in metrics.notes:
        log_once(note)
    table = _open_data(config.data, options, world, log_once)
    fingerprint = world.on_all_ranks(lambda: _check_data(table, trained, allow_other=options.other_data))
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
                num=options.num,
                seed=options.seed,
                steps=options.steps,
                least_time=trained.least_time,
                conditional=config.generator.conditional,
                on_progress=meter.show,
            )
        )
        figures = evaluator.measure(world.on_all_ranks(trained.build).to(world.device))
    if not world.is_main:
        return
    other_data = trained.data_fingerprint not in ("", fingerprint)
    add_to_curves(options.place, curve_name(options, metrics, other_data), figures, trained.images)
    if options.json:
        data = {
            "source": config.data.source,
            "rows": len(table),
            "sha256": fingerprint,
            "trained_on_sha256": trained.data_fingerprint or None,
        }
        networks = {name: space.digest() for name, space in spaces.items()}
        features = {"features": metrics.by_metric, "features_sha256": networks}
        print(json.dumps(_subject(trained, options) | {"data": data} | features | figures, indent=1))
        return
    _print_table(trained, figures, metrics, options)
    log(f"measured in {time.monotonic() - started:.1f} s on {world.world_size} rank(s)")


def _subject(trained: TrainedGenerator, options: argparse.Namespace) -> dict[str, Any]:
    weights = {name: getattr(trained, name) for name in ("step", "images", "weights", "weights_sha256")}
    return weights | {name: getattr(options, name) for name in ("num", "seed", "steps")}


def _print_table(
    trained: TrainedGenerator, figures: Figures, metrics: MetricSpaces, options: argparse.Namespace
) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    kimg = trained.images / 1000
    grid = Grid(title=f"{options.num:,} samples, seed {options.seed}; {trained.kind_of_weights}, {kimg:.1f} kimg")
    grid.add_column("figure")
    grid.add_column("value", justify="right")
    grid.add_column("features")
    grid.add_column("better")
    for name, value in figures.items():
        if not isinstance(value, list):
            metric, better = FIGURES[name]
            grid.add_row(name, f"{value:.5g}", metrics.by_metric[metric], better)
    Console().print(grid)
