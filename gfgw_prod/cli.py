"""The commands: train, pack, sample, evaluate, export, inspect, doctor. Each imports heavy packages itself."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from gfgw_prod import __version__, settings_io
from gfgw_prod.cli_sampling import add_evaluate_options, add_place, add_sample_options, path, run_evaluate, run_sample
from gfgw_prod.distributed.torchrun import place, speaks_for_its_node, tell_torchrun
from gfgw_prod.resilience import first_word
from gfgw_prod.resilience.exit_codes import (
    BAD_INPUT,
    CRASHED,
    INTERRUPTED,
    HardwareError,
    NoProgressError,
    UserError,
)
from gfgw_prod.resilience.standard_streams import output_error, tell

if TYPE_CHECKING:
    from gfgw_prod.config import Config

SETTINGS_HELP = (
    "Every setting can stand in the YAML file and on the command line; the command line wins. - and _ are alike."
)
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
        if not prints or (unwritten := output_error(failed=True)) is None:
            raise
    else:
        unwritten = output_error() if prints else None
    if isinstance(unwritten, BrokenPipeError):  # whoever read it has seen enough
        return CRASHED
    if unwritten is not None:
        tell(f"gfgw: standard output cannot be written ({unwritten.strerror})")
        return BAD_INPUT
    return code


def _outcome(arguments: list[str]) -> int:
    try:
        return _run(arguments)
    except (UserError, NoProgressError, HardwareError) as error:
        first_word.say(f"gfgw: {error}", otherwise=speaks_for_its_node())
        tell_torchrun(error)
        return error.exit_code
    except SystemExit as done:  # argparse has printed help or a version
        return int(done.code or 0)
    except RuntimeError as error:
        from gfgw_prod.distributed.lost_peers import lost_connection

        if (loss := lost_connection(error)) is None:
            raise
        # Its peer, or the launcher, tells why. The same happens on every rank, in another place.
        tell(f"gfgw: rank {os.environ.get('RANK', '0')} lost the connection to other ranks: {loss}")
        return CRASHED
    except KeyboardInterrupt:
        tell(f"gfgw: interrupted{GOES_ON.get(arguments[0], '')}")
        return INTERRUPTED


class Parsed(NamedTuple):
    """A command line that was understood: options by name, and the settings of the commands that have them."""

    command: str
    options: argparse.Namespace
    config: Config | None


def parsed(arguments: Sequence[str]) -> Parsed:
    """What a command line asks for; nothing is done.

    Raises:
        UserError: if it is no command, or a setting is wrong.
        SystemExit: after help or the version was printed.
    """
    parser = settings_io.Parser(prog="gfgw", description="Trainer of one-step image generators by GFGW flow matching.")
    parser.add_argument("--version", action="version", version=f"gfgw_prod {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=settings_io.Parser)

    train = commands.add_parser(
        "train",
        help="train or resume a run, alone or under torchrun",
        description="Trains, or resumes the run in run.dir. " + SETTINGS_HELP,
        usage="gfgw train [--config FILE] [--dry-run [--json] [--ranks N]] [--SECTION.NAME VALUE ...]",
    )
    train.add_argument("--config", type=path, metavar="FILE", help="YAML file of settings")
    train.add_argument(
        "--dry-run", action="store_true", help="build on the meta device and print what the run would take"
    )
    train.add_argument("--json", action="store_true", help="with --dry-run: print JSON")
    train.add_argument("--ranks", type=int, metavar="N", help="with --dry-run: ranks to plan for (1)")

    pack = commands.add_parser(
        "pack",
        help="decode a data set once, into files that training maps into memory",
        description="Packs the data set of the settings into OUT; what a killed process has packed is kept. "
        + SETTINGS_HELP,
        usage="gfgw pack OUT [--verify] [--config FILE] [--workers N] [--shard-rows N] [--json] [--data.X Y ...]",
    )
    pack.add_argument("out", type=path, metavar="OUT", help="directory of the pack, new or of an unfinished one")
    pack.add_argument("--verify", action="store_true", help="hash the files of a finished pack: exit code 2 if damaged")
    pack.add_argument("--config", type=path, metavar="FILE", help="YAML file of settings")
    pack.add_argument("--workers", type=int, metavar="N", help="processes that decode (as many as CPUs); 0: this one")
    pack.add_argument("--shard-rows", type=int, metavar="N", help="images in a file (as many as 256 MiB hold)")
    pack.add_argument("--json", action="store_true", help="print JSON")

    sample = commands.add_parser("sample", help="draw images from a checkpoint or an exported generator")
    evaluate = commands.add_parser("evaluate", help="measure samples of a generator against the data set")
    add_sample_options(sample)
    add_evaluate_options(evaluate)

    export = commands.add_parser("export", help="write the generator as one file for other programs")
    add_place(export, also=", or an exported .safetensors file")
    export.add_argument(
        "--format",
        choices=("safetensors", "onnx"),
        required=True,
        help="safetensors: weights and settings, for gfgw_prod.trained.load_generator; onnx: noise in, images out",
    )
    export.add_argument("--out", type=path, required=True, metavar="FILE", help="file to write, whole or not at all")
    export.add_argument("--raw", action="store_true", help="weights as trained instead of their average (EMA)")

    inspect = commands.add_parser("inspect", help="list checkpoints with step, images and whether they are whole")
    add_place(inspect)
    inspect.add_argument("--verify", action="store_true", help="leave with exit code 2 if any is damaged")
    inspect.add_argument("--json", action="store_true", help="print JSON")

    doctor = commands.add_parser("doctor", help="check that this machine can train")
    doctor.add_argument("--json", action="store_true", help="print JSON")

    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        raise UserError("name a command: train, pack, sample, evaluate, export, inspect or doctor (see gfgw --help)")
    with_settings = {"train": train, "pack": pack}.get(arguments[0])
    if with_settings is not None:
        return _with_settings(arguments[0], with_settings, arguments[1:])
    chosen, rest = parser.parse_known_args(settings_io.normalised(arguments))
    if rest:
        raise UserError(f"{chosen.command}: unexpected argument {rest[0]!r}; see gfgw {chosen.command} --help")
    return Parsed(chosen.command, chosen, None)


def _with_settings(command: str, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Parsed:
    source = settings_io.add_settings(parser)
    chosen, rest = parser.parse_known_args(settings_io.normalised(arguments))
    settings_io.reject_unknown(rest)
    if command == "train" and not chosen.dry_run and (chosen.json or chosen.ranks is not None):
        raise UserError("--json and --ranks go with --dry-run")
    from_file = settings_io.read_yaml(chosen.config) if chosen.config else {}
    return Parsed(command, chosen, settings_io.resolve(from_file, settings_io.parsed(source, chosen)))


def _run(arguments: list[str]) -> int:
    command, chosen, config = parsed(arguments)
    if config is not None:
        return _train(chosen, config) if command == "train" else _pack(chosen, config)
    if command == "sample":
        return run_sample(chosen)
    if command == "evaluate":
        return run_evaluate(chosen)
    if command == "export":
        from gfgw_prod.export import export_generator

        return export_generator(chosen.place, chosen.format, chosen.out, raw=chosen.raw)
    if command == "inspect":
        from gfgw_prod.commands import inspect_checkpoints

        return inspect_checkpoints(chosen.place, verify=chosen.verify, as_json=chosen.json)
    from gfgw_prod.doctor import examine

    return examine(as_json=chosen.json)


def _train(chosen: argparse.Namespace, config: Config) -> int:
    if chosen.dry_run:
        from gfgw_prod.dry_run import plan

        return plan(config, ranks=1 if chosen.ranks is None else chosen.ranks, as_json=chosen.json)
    place()  # a malformed environment is refused before torch is imported
    from gfgw_prod.trainer import train

    return train(config)


def _pack(chosen: argparse.Namespace, config: Config) -> int:
    from gfgw_prod.pack_command import pack_source, verify_pack

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
