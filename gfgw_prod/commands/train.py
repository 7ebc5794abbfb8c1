"""The command ``train``."""

from __future__ import annotations

import argparse

from gfgw_prod.checkpoint.run_settings import resumable
from gfgw_prod.commands.options import add_config
from gfgw_prod.distributed.torchrun import rank_environment
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.reading import SETTINGS_HELP, add_settings, layers_of


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train``."""
    parser.description = f"Trains, or resumes the run in run.dir. {SETTINGS_HELP}"
    parser.usage = "gfgw train [--config FILE] [--dry-run [--json] [--ranks N]] [--SECTION.NAME VALUE ...]"
    add_config(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what the run would take")
    parser.add_argument("--json", action="store_true", help="with --dry-run: print JSON")
    parser.add_argument("--ranks", type=int, metavar="N", help="with --dry-run: number of ranks (1)")
    add_settings(parser)


def run(options: argparse.Namespace) -> int:
    """Train, or print the estimates of a dry run; return the exit code."""
    if not options.dry_run and (options.json or options.ranks is not None):
        raise UserError("--json and --ranks go with --dry-run")
    config = resumable(*layers_of(options))
    if options.dry_run:
        from gfgw_prod.commands.dry_run import estimate

        return estimate(config, ranks=1 if options.ranks is None else options.ranks, as_json=options.json)
    rank_environment()  # refuses a malformed environment before torch is imported
    from gfgw_prod.training.trainer import train

    return train(config)
