"""The command ``evaluate``: how good samples are, of a trained generator or from files, as a table or JSON."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from gfgw_prod.commands.options import GENERATOR, add_config, add_drawing, add_json, add_place, path
from gfgw_prod.distributed.torchrun import rank_environment
from gfgw_prod.process.exit_codes import FINISHED, UserError
from gfgw_prod.process.standard_streams import log
from gfgw_prod.sampling.limits import check_drawing
from gfgw_prod.settings.evaluation import FEATURES, FEWEST, FIGURES, METRICS, EvaluationMetric, checked_features
from gfgw_prod.settings.reading import read_yaml, resolve

if TYPE_CHECKING:
    from gfgw_prod.api.evaluating import Measurement

NUM = 5000  # samples, by default
OF_GENERATOR = ("step", "images", "weights", "weights_sha256")  # facts of a generator in the JSON


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``evaluate``."""
    add_place(parser, GENERATOR, optional=True)
    add_config(parser)
    parser.add_argument("--samples", type=path, metavar="DIR", help="measure these images instead of drawing any")
    parser.add_argument("--halves", action="store_true", help="also measure a half of the data against the other")
    parser.add_argument("--metrics", metavar="LIST", help=f"of {','.join(METRICS)} (default: all that have weights)")
    parser.add_argument(
        "--features",
        default="auto",
        metavar="SPACE",
        help=f"space of fd, kid, pr, coverage and memorisation: {', '.join(FEATURES)} or timm:NAME@SIDE "
        "(auto: the run's own; for kid inception if available)",
    )
    add_drawing(parser, num=NUM)
    add_json(parser)
    for name, what in (
        ("--inception", "torch-fidelity's Inception weights"),
        ("--dinov2", "timm's DINOv2 ViT-L/14 weights"),
        ("--weights", "weights of --features timm:NAME, or where the run's features.weights are now"),
        ("--data-path", "where the data set is now (default: data.path of the run)"),
    ):
        parser.add_argument(name, type=path, metavar="PATH", help=what)
    parser.add_argument("--other-data", action="store_true", help="allow data that the run was not trained on")


def run(options: argparse.Namespace) -> int:
    """Measure the generator and print the figures, alone or on every rank of a launcher; return the exit code."""
    check_drawing(options.num, options.seed, least=FEWEST, prefix="--")
    options.features = checked_features(options.features, "--features")
    if options.samples is not None and (options.num, options.raw) != (NUM, False):
        raise UserError("--num and --raw are for samples of a generator; --samples are measured all")
    asked = None if options.metrics is None else metric_list(options.metrics)
    options.settings = None if options.config is None else resolve(read_yaml(options.config)).model_dump()
    rank_environment()  # refuses a malformed environment before torch is imported
    from gfgw_prod.api.evaluating import Evaluation, measure

    started = time.monotonic()
    names = {field.name for field in fields(Evaluation)} - {"metrics"}
    measured = measure(Evaluation(metrics=asked, **{name: getattr(options, name) for name in names}))
    if not measured.world.is_main:
        return FINISHED
    trained = measured.trained if options.samples is None else None  # whose samples these are
    if options.json:
        facts: dict[str, Any] = {
            **({} if trained is None else {name: getattr(trained, name) for name in OF_GENERATOR}),
            **({} if options.samples is None else {"samples": str(options.samples)}),
            "num": measured.num,
            "seed": options.seed,
            "data": measured.data,
            "features": measured.metrics.by_metric,
            "features_sha256": {name: space.digest() for name, space in measured.spaces.items()},
        }
        print(json.dumps(facts | measured.figures, indent=1))
        return FINISHED
    _print_table(measured, options)
    log(f"measured in {time.monotonic() - started:.1f} s on {measured.world.world_size} rank(s)")
    return FINISHED


def metric_list(text: str) -> tuple[EvaluationMetric, ...]:
    """Metrics of a list such as ``fd,kid``, each once; ``UserError`` for an unknown one."""
    known: dict[str, EvaluationMetric] = {metric: metric for metric in METRICS}
    words = [word.strip().replace("_", "-") for word in text.split(",")]
    for word in words:
        if word not in known:
            raise UserError(f"--metrics should be some of {', '.join(METRICS)}, not {word[:100]!r}")
    return tuple(dict.fromkeys(known[word] for word in words))


def _print_table(measured: Measurement, options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    trained, rows = measured.trained, measured.data["rows"]
    title = f"{measured.num:,} samples in {options.samples}"
    if trained is not None and options.samples is None:
        kimg = trained.images / 1000
        title = f"{measured.num:,} samples, seed {options.seed}; {trained.kind_of_weights}, {kimg:.1f} kimg"
    grid = Grid(title=f"{title}; against {rows:,} images")
    grid.add_column("figure")
    grid.add_column("value", justify="right")
    if options.halves:
        grid.add_column(f"halves of {rows // 2:,}", justify="right")
    grid.add_column("features")
    grid.add_column("better")
    for name, (metric, better) in FIGURES.items():
        if name in measured.figures:
            names = (name, f"halves_{name}") if options.halves else (name,)
            values = [f"{measured.figures[each]:.5g}" if each in measured.figures else "" for each in names]
            grid.add_row(name, *values, measured.metrics.by_metric[metric], better)
    Console().print(grid)
