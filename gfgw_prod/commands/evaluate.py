"""The command ``evaluate``: how good a trained generator's samples are, as a table, JSON and curves."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any, cast

from gfgw_prod.commands.evaluation_curves import add_to_curves, curve_name
from gfgw_prod.commands.options import Asked
from gfgw_prod.data.sources import Table, open_table
from gfgw_prod.distributed.world import World
from gfgw_prod.evaluation.evaluator import Evaluator
from gfgw_prod.evaluation.manifolds import Figures
from gfgw_prod.evaluation.metric_spaces import MetricSpaces, choose_spaces
from gfgw_prod.evaluation.spaces import Files, Space, build_space, trained_with
from gfgw_prod.process.exit_codes import FINISHED, UserError
from gfgw_prod.process.meter import Meter
from gfgw_prod.sampling.trained import TrainedGenerator, read_trained
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.data import BUILT_IN
from gfgw_prod.settings.evaluation import FIGURES, SpaceName
from gfgw_prod.settings.reading import resolve
from gfgw_prod.settings.removed import without_removed

SECTIONS = ("run", "generator", "data", "features")  # of a run's settings that matter here


def evaluate(place: str, asked: Asked) -> int:
    """Measures the generator at ``place`` and prints what was found; alone or on every rank of a launcher.

    Raises:
        UserError: if there is no good checkpoint, no data, or weights that were asked for are not at hand.
    """
    trained = read_trained(place, raw=asked.raw)
    config = _settings(trained, asked)
    recorded = Files(config.evaluation.inception, config.evaluation.dinov2, config.features.weights)
    files = Files.now(recorded, Files(asked.inception, asked.dinov2, asked.dinov2_small))
    plan = choose_spaces(asked.metrics, asked.features, files, trained_with(config), math.prod(trained.image_shape))
    with World.joined(config.run.device, config.run.threads, config.distributed.timeout_seconds) as world:
        _measure(place, trained, config, plan, files, asked, world)
    return FINISHED


def _settings(trained: TrainedGenerator, asked: Asked) -> Config:
    own = {section: trained.config[section] for section in SECTIONS if section in trained.config}
    given: dict[str, Any] = {"run": {"device": asked.device}}
    if asked.data_path is not None:
        source = own.get("data", {}).get("source")
        if source in BUILT_IN:
            raise UserError(f"--data-path should be left out: the run's data.source {source} is built in")
        given["data"] = {"path": asked.data_path}
    recorded = trained.config.get("evaluation", {})
    known = {name: recorded[name] for name in ("inception", "dinov2") if name in recorded}
    return resolve(without_removed(own), {"evaluation": known}, given)


def _say(line: str) -> None:
    print(f"evaluate: {line}", file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    """On all ranks but the first."""


def _checked_data(table: Table, trained: TrainedGenerator, *, other: bool) -> str:
    """Refuses data that the generator was not trained on, unless they may be ``other``; they must be alike at least.

    Returns:
        The data's fingerprint.

    Raises:
        UserError: naming what differs.
    """
    for what, its, made in (
        ("images of (c, h, w)", table.image_shape, trained.image_shape),
        ("classes:", table.num_classes, trained.num_classes),
    ):
        if its != made:
            raise UserError(f"the data set has {what} {its}, the generator {made}; name its own with --data-path")
    found, expected = table.fingerprint(), trained.data_fingerprint
    if not other and expected and found != expected:
        raise UserError(
            f"the data set is not the one that the generator was trained on: its fingerprint is {found}, that one's "
            f"{expected}; name its own with --data-path, or measure against this one with --other-data"
        )
    return found


def _measure(
    place: str, trained: TrainedGenerator, config: Config, plan: MetricSpaces, files: Files, asked: Asked, world: World
) -> None:
    started = time.monotonic()
    by_rank = world.all_gather_object(plan.by_metric)
    for rank, its in enumerate(by_rank):
        if its != by_rank[0]:  # nodes may have other caches
            raise UserError(f"rank {rank} has not the same weights at hand as rank 0; name files that all ranks see")
    say = _say if world.is_main else _silent
    for note in plan.notes:
        say(note)
    try:
        table = open_table(config.data, world, say)
    except UserError as error:
        if asked.data_path is not None or config.data.source in BUILT_IN:
            raise
        raise UserError(f"{error}; evaluate --data-path says where the data set is now") from None
    fingerprint = world.together(lambda: _checked_data(table, trained, other=asked.other_data))
    spaces: dict[SpaceName, Space] = world.together(
        lambda: {name: build_space(name, files, table.image_shape, say).to(world.device) for name in plan.used}
    )
    with Meter("measuring", enabled=world.is_main) as meter:
        evaluator = world.together(
            lambda: Evaluator(
                table,
                plan,
                spaces,
                world,
                num=asked.num,
                seed=asked.seed,
                steps=asked.steps,
                least_time=trained.least_time,
                conditional=config.generator.conditional,
                on_progress=meter.show,
            )
        )
        figures = evaluator.measure(world.together(trained.build).to(world.device))
    if not world.is_main:
        return
    name = curve_name(trained, asked, plan, trained_with(config), fingerprint)
    add_to_curves(place, trained, figures, name)
    if asked.as_json:
        said: dict[str, Any] = {
            "step": trained.step,
            "images": trained.images,
            "weights": trained.weights,
            "weights_sha256": trained.weights_sha256,
            "num": asked.num,
            "seed": asked.seed,
            "steps": asked.steps,
            "data": {
                "source": config.data.source,
                "rows": len(table),
                "sha256": fingerprint,
                "trained_on_sha256": trained.data_fingerprint or None,
            },
            "features": dict(plan.by_metric),
            "features_sha256": {name: space.digest() for name, space in spaces.items()},
        }
        print(json.dumps(said | figures, indent=1))
        return
    _show(trained, figures, plan, asked)
    seconds = time.monotonic() - started
    print(f"measured in {seconds:.1f} s on {world.world_size} rank(s)", file=sys.stderr, flush=True)


def _show(trained: TrainedGenerator, figures: Figures, plan: MetricSpaces, asked: Asked) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    kind = {"ema": "averaged weights", "raw": "weights as trained"}[trained.weights]
    grid = Grid(title=f"{asked.num:,} samples, seed {asked.seed}; {kind}, {trained.images / 1000:.1f} kimg")
    for name, justify in (("figure", "left"), ("value", "right"), ("features", "left"), ("better", "left")):
        grid.add_column(name, justify=cast(Any, justify))
    for name, value in figures.items():
        if not isinstance(value, list):
            metric, better = FIGURES[name]
            grid.add_row(name, f"{value:.5g}", plan.by_metric[metric], better)
    Console().print(grid)
