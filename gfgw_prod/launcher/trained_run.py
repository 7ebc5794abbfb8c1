"""The run that this launcher's ranks train: read its settings, log in its format, hold the lock of its directory."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.home import expand_home
from gfgw_prod.process.run_lock import hold_for_job
from gfgw_prod.process.standard_streams import log_as_json
from gfgw_prod.settings.arguments import Parser, with_dashes
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.presets import settings_file
from gfgw_prod.settings.reading import add_settings, layers_of, resolve

TRAINS = ["-m", "gfgw_prod", "train"]


def settings_of_ranks(words: Sequence[str]) -> Config | None:
    """The settings of ranks with this command; ``None`` if they do not train, or will refuse the command themselves."""
    begins = next((at for at in range(len(words)) if [*words[at : at + 3]] == TRAINS), None)
    if begins is None or {"--dry-run", "--dry_run", "--help", "-h"} & {*words}:
        return None
    parser = Parser(add_help=False)
    parser.add_argument("--config", type=lambda text: settings_file(expand_home(text)))
    add_settings(parser)
    try:
        options, _ = parser.parse_known_args(with_dashes(words[begins + 3 :]))
        return resolve(*layers_of(options))
    except (UserError, ValueError):
        return None


def can_admit_ranks(config: Config) -> bool:
    """Whether ranks with these settings may admit others while they train; the ranks themselves decide."""
    replicated = config.distributed.strategy == "ddp" or config.distributed.shard_ranks > 0
    on_gpu = config.run.device != "cpu" and torch.cuda.is_available()
    return config.resilience.goes_on_in_place(on_gpu=on_gpu) and replicated


def prepare_launcher(config: Config, job: str) -> None:
    """Log in the format of the ranks, and hold the lock of their run directory until this process ends."""
    if config.telemetry.log_format == "json":
        log_as_json(str(config.run.dir))
    threading.Thread(target=hold_for_job, args=(config.run.dir, job), name="run-lock", daemon=True).start()
