"""The commands: train, sample, export, inspect, doctor. Heavy packages are imported where a command needs them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gfgw_prod import __version__, settings_io
from gfgw_prod.distributed.torchrun import place, speaks_for_its_node
from gfgw_prod.resilience.exit_codes import BAD_INPUT, CRASHED, HardwareError, NoProgressError, UserError
from gfgw_prod.resilience.standard_streams import output_error, tell

SETTINGS_HELP = (
    "Every setting can stand in the YAML file and on the command line; the command line wins. - and _ are alike."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    try:
        code = _outcome(list(sys.argv[1:] if arguments is None else arguments))
    except OSError:
        if (unwritten := output_error(failed=True)) is None:
            raise
    else:
        unwritten = output_error()
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
        if speaks_for_its_node():
            tell(f"gfgw: {error}")
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
        tell("gfgw: interrupted; the same command goes on from the last checkpoint")
        return 130


def _run(arguments: list[str]) -> int:
    parser = settings_io.Parser(prog="gfgw", description="Trainer of one-step image generators by GFGW flow matching.")
    parser.add_argument("--version", action="version", version=f"gfgw_prod {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=settings_io.Parser)

    train = commands.add_parser(
        "train",
        help="train or resume a run, alone or under torchrun",
        description="Trains, or resumes the run in run.dir. " + SETTINGS_HELP,
        usage="gfgw train [--config FILE] [--dry-run [--json] [--ranks N]] [--SECTION.NAME VALUE ...]",
    )
    train.add_argument("--config", type=_path, metavar="FILE", help="YAML file of settings")
    train.add_argument(
        "--dry-run", action="store_true", help="build on the meta device and print what the run would take"
    )
    train.add_argument("--json", action="store_true", help="with --dry-run: print JSON")
    train.add_argument("--ranks", type=int, metavar="N", help="with --dry-run: ranks to plan for (1)")

    sample = commands.add_parser("sample", help="draw images from a checkpoint or an exported generator")
    _add_place(sample, also=", or an exported .safetensors file")
    sample.add_argument("--num", type=int, default=64, help="number of images (default: 64)")
    sample.add_argument("--out", type=_path, required=True, metavar="DIR", help="directory for the images")
    sample.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    sample.add_argument("--grid", action="store_true", help="one picture of all images instead of a file each")
    sample.add_argument("--raw", action="store_true", help="weights as trained instead of their average (EMA)")

    export = commands.add_parser("export", help="write the generator as one file for other programs")
    _add_place(export, also=", or an exported .safetensors file")
    export.add_argument(
        "--format",
        choices=("safetensors", "onnx"),
        required=True,
        help="safetensors: weights and settings, for gfgw_prod.trained.load_generator; onnx: noise in, images out",
    )
    export.add_argument("--out", type=_path, required=True, metavar="FILE", help="file to write, whole or not at all")
    export.add_argument("--raw", action="store_true", help="weights as trained instead of their average (EMA)")

    inspect = commands.add_parser("inspect", help="list checkpoints with step, images and whether they are whole")
    _add_place(inspect)
    inspect.add_argument("--verify", action="store_true", help="leave with exit code 2 if any is damaged")
    inspect.add_argument("--json", action="store_true", help="print JSON")

    doctor = commands.add_parser("doctor", help="check that this machine can train")
    doctor.add_argument("--json", action="store_true", help="print JSON")

    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        raise UserError("name a command: train, sample, export, inspect or doctor (see gfgw --help)")
    if arguments[0] == "train":
        return _train(train, arguments[1:])
    chosen, rest = parser.parse_known_args(settings_io.normalised(arguments))
    if rest:
        raise UserError(f"{chosen.command}: unexpected argument {rest[0]!r}; see gfgw {chosen.command} --help")
    if chosen.command == "sample":
        from gfgw_prod.commands import sample_images

        return sample_images(chosen.place, chosen.num, chosen.out, seed=chosen.seed, grid=chosen.grid, raw=chosen.raw)
    if chosen.command == "export":
        from gfgw_prod.export import export_generator

        return export_generator(chosen.place, chosen.format, chosen.out, raw=chosen.raw)
    if chosen.command == "inspect":
        from gfgw_prod.commands import inspect_checkpoints

        return inspect_checkpoints(chosen.place, verify=chosen.verify, as_json=chosen.json)
    from gfgw_prod.doctor import examine

    return examine(as_json=chosen.json)


def _train(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    source = settings_io.add_settings(parser)
    chosen, rest = parser.parse_known_args(settings_io.normalised(arguments))
    settings_io.reject_unknown(rest)
    if not chosen.dry_run and (chosen.json or chosen.ranks is not None):
        raise UserError("--json and --ranks go with --dry-run")
    from_file = settings_io.read_yaml(chosen.config) if chosen.config else {}
    config = settings_io.resolve(from_file, settings_io.parsed(source, chosen))
    if chosen.dry_run:
        from gfgw_prod.dry_run import plan

        return plan(config, ranks=1 if chosen.ranks is None else chosen.ranks, as_json=chosen.json)
    place()  # a malformed environment is refused before torch is imported
    from gfgw_prod.trainer import train

    return train(config)


def _path(word: str) -> Path:
    if not word:  # which would mean the present directory
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(word)


def _add_place(parser: argparse.ArgumentParser, also: str = "") -> None:
    described = f"run directory or one of its checkpoints{also}"
    parser.add_argument("place", metavar="RUN_OR_CHECKPOINT", help=described)
