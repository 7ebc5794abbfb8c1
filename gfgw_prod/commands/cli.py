"""The command line: ``gfgw COMMAND ...``.

Only the module of the given command is imported, and that imports heavy packages when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from gfgw_prod.distributed.torchrun import reports_for_node, write_error_file
from gfgw_prod.process import first_report
from gfgw_prod.process.exit_codes import BAD_INPUT, CRASHED, INTERRUPTED, HardwareError, NoProgressError, UserError
from gfgw_prod.process.standard_streams import log, output_error
from gfgw_prod.process.version import VERSION
from gfgw_prod.settings.arguments import Parser, with_dashes

# Each command is implemented in the module of its name by ``add_options(parser)`` and ``run(options) -> exit code``.
# ``run`` raises ``UserError`` for anything that the user can correct: options, settings, paths, missing files.
COMMANDS = {
    "train": "train or resume a run, alone or under torchrun",
    "pack": "decode a data set once, into files that training maps into memory",
    "sample": "draw images from a checkpoint or an exported generator",
    "evaluate": "measure samples of a generator against the data set",
    "export": "write the generator as one file for other programs",
    "inspect": "list checkpoints with step, images and whether they are undamaged",
    "doctor": "check that this machine can train",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Training prints no results on standard output, so a broken one does not change its exit code.
    prints = words[:1] != ["train"] or not {"--dry-run", "--dry_run", "--help", "-h"}.isdisjoint(words)
    try:
        code = _exit_code(words)
    except OSError:
        if not prints or (unwritten := output_error(probe=True)) is None:
            raise
    else:
        unwritten = output_error() if prints else None
    if isinstance(unwritten, BrokenPipeError):  # the reader has seen enough
        return CRASHED
    if unwritten is not None:
        log(f"gfgw: standard output cannot be written ({unwritten.strerror})", "error")
        return BAD_INPUT
    return code


def _exit_code(arguments: list[str]) -> int:
    try:
        command, options = parse(arguments)
        return int(command.run(options))
    except (UserError, NoProgressError, HardwareError) as error:
        first_report.report_first(f"gfgw: {error}", without_launcher=reports_for_node())
        write_error_file(error)
        return error.exit_code
    except SystemExit as exit_:  # argparse has printed help or the version
        return int(exit_.code or 0)
    except RuntimeError as error:
        from gfgw_prod.distributed.lost_peers import lost_connection

        if (loss := lost_connection(error)) is None:
            raise
        # The peer or the launcher prints the cause; this error appears on all other ranks.
        log(f"gfgw: rank {os.environ.get('RANK', '0')} lost the connection to other ranks: {loss}", "warning")
        return CRASHED
    except KeyboardInterrupt:
        resumes = "; the same command resumes from the last checkpoint" if arguments[:1] == ["train"] else ""
        log(f"gfgw: interrupted{resumes}")
        return INTERRUPTED


def parse(arguments: Sequence[str]) -> tuple[ModuleType, argparse.Namespace]:
    """The module of the given command and its options; ``SystemExit`` after printing help or the version."""
    if arguments and arguments[0] in ("-h", "--help", "--version"):
        _overview().parse_args(arguments)  # prints and exits
    if not arguments or arguments[0] not in COMMANDS:
        problem = f"unknown command {arguments[0][:100]!r}" if arguments else "no command"
        raise UserError(f"{problem}; name one of {', '.join(COMMANDS)} (see gfgw --help)")
    name, *rest = arguments
    command = importlib.import_module(f"gfgw_prod.commands.{name}")
    summary = COMMANDS[name]
    parser = Parser(prog=f"gfgw {name}", description=f"{summary[0].upper()}{summary[1:]}.")
    command.add_options(parser)
    options, unknown = parser.parse_known_args(with_dashes(rest))
    if unknown and "settings" in options:
        from gfgw_prod.settings.reading import reject_unknown

        reject_unknown(unknown)
    if unknown:
        raise UserError(f"{name}: unexpected argument {unknown[0]!r}; see gfgw {name} --help")
    return command, options


def _overview() -> Parser:
    parser = Parser(prog="gfgw", description="Trainer of one-step image generators by GFGW flow matching.")
    parser.add_argument("--version", action="version", version=f"gfgw_prod {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary)
    return parser
