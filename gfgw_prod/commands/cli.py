"""The commands: train, pack, sample, evaluate, export, inspect, doctor. Each imports heavy packages itself."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gfgw_prod.commands.options import MOST_SAMPLES, _check, _check_drawing, class_list, metric_list, parsed
from gfgw_prod.distributed.torchrun import rank_environment, reports_for_node, write_error_file
from gfgw_prod.process import first_report
from gfgw_prod.process.exit_codes import BAD_INPUT, CRASHED, INTERRUPTED, HardwareError, NoProgressError, UserError
from gfgw_prod.process.standard_streams import log, output_error
from gfgw_prod.settings.evaluation import FEWEST, MOST

if TYPE_CHECKING:
    from gfgw_prod.settings.config import Config

# What the same command does after an interrupt; others begin anew.
GOES_ON = {
    "train": "; the same command goes on from the last checkpoint",
    "pack": "; the same command goes on from the last whole file of the pack",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    asked = list(sys.argv[1:] if arguments is None else arguments)
    # A run prints nothing that anybody waits for: whether it can be written says nothing of how the run ended.
    prints = asked[:1] != ["train"] or not {"--dry-run", "--dry_run", "--help", "-h"}.isdisjoint(asked)
    try:
        code = _outcome(asked)
    except OSError:
        if not prints or (unwritten := output_error(probe=True)) is None:
            raise
    else:
        unwritten = output_error() if prints else None
    if isinstance(unwritten, BrokenPipeError):  # whoever read it has seen enough
        return CRASHED
    if unwritten is not None:
        log(f"gfgw: standard output cannot be written ({unwritten.strerror})")
        return BAD_INPUT
    return code


def _outcome(arguments: list[str]) -> int:
    try:
        return _run(arguments)
    except (UserError, NoProgressError, HardwareError) as error:
        first_report.report_first(f"gfgw: {error}", without_launcher=reports_for_node())
        write_error_file(error)
        return error.exit_code
    except SystemExit as done:  # argparse has printed help or a version
        return int(done.code or 0)
    except RuntimeError as error:
        from gfgw_prod.distributed.lost_peers import lost_connection

        if (loss := lost_connection(error)) is None:
            raise
        # Its peer, or the launcher, tells why. The same happens on every rank, in another place.
        log(f"gfgw: rank {os.environ.get('RANK', '0')} lost the connection to other ranks: {loss}")
        return CRASHED
    except KeyboardInterrupt:
        log(f"gfgw: interrupted{GOES_ON.get(arguments[0], '')}")
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    command, chosen, config = parsed(arguments)
    if config is not None:
        return _train(chosen, config) if command == "train" else _pack(chosen, config)
    if command == "sample":
        return run_sample(chosen)
    if command == "evaluate":
        return run_evaluate(chosen)
    if command == "export":
        from gfgw_prod.commands.export import export_generator

        return export_generator(chosen.place, chosen.format, chosen.out, raw=chosen.raw)
    if command == "inspect":
        from gfgw_prod.commands.inspect import inspect_checkpoints

        return inspect_checkpoints(chosen.place, verify=chosen.verify, as_json=chosen.json)
    from gfgw_prod.commands.doctor import examine

    return examine(as_json=chosen.json)


def _train(chosen: argparse.Namespace, config: Config) -> int:
    if chosen.dry_run:
        from gfgw_prod.commands.dry_run import plan

        return plan(config, ranks=1 if chosen.ranks is None else chosen.ranks, as_json=chosen.json)
    rank_environment()  # a malformed environment is refused before torch is imported
    from gfgw_prod.training.trainer import train

    return train(config)


def _pack(chosen: argparse.Namespace, config: Config) -> int:
    from gfgw_prod.commands.pack import pack_source, verify_pack

    if chosen.verify:
        return verify_pack(chosen.out, as_json=chosen.json)
    return pack_source(
        config.data,
        chosen.out,
        workers=chosen.workers,
        shard_rows=chosen.shard_rows,
        progress=config.telemetry.progress,
        as_json=chosen.json,
    )


def run_sample(chosen: argparse.Namespace) -> int:
    """Checks the options of ``sample`` and does it.

    Raises:
        UserError: for a value that makes no sense, and whatever ``sample_images`` refuses.
    """
    _check("--num", chosen.num, 1, MOST_SAMPLES)
    _check_drawing(chosen)
    _check("--batch-size", chosen.batch_size, 1, MOST_SAMPLES)
    classes = None if chosen.classes is None else class_list(chosen.classes)
    rank_environment()  # a malformed environment is refused before torch is imported
    from gfgw_prod.commands.sample import Request, sample_images

    return sample_images(
        chosen.place,
        Request(
            count=chosen.num,
            out=chosen.out,
            form="npz" if chosen.npz else "grid" if chosen.grid else "png",
            seed=chosen.seed,
            classes=classes,
            steps=chosen.steps,
            batch_size=chosen.batch_size,
            raw=chosen.raw,
            device=chosen.device,
        ),
    )


def run_evaluate(chosen: argparse.Namespace) -> int:
    """Checks the options of ``evaluate`` and does it.

    Raises:
        UserError: for a value that makes no sense, and whatever ``evaluate`` refuses.
    """
    _check("--num", chosen.num, FEWEST, MOST)
    _check_drawing(chosen)
    metrics = None if chosen.metrics is None else metric_list(chosen.metrics)
    rank_environment()  # a malformed environment is refused before torch is imported
    from gfgw_prod.commands.evaluate import evaluate
    from gfgw_prod.commands.options import Asked

    return evaluate(
        chosen.place,
        Asked(
            metrics=metrics,
            features=chosen.features,
            num=chosen.num,
            seed=chosen.seed,
            steps=chosen.steps,
            raw=chosen.raw,
            as_json=chosen.json,
            device=chosen.device,
            data_path=chosen.data_path,
            inception=chosen.inception,
            dinov2=chosen.dinov2,
            dinov2_small=chosen.dinov2_small,
            other_data=chosen.other_data,
        ),
    )
