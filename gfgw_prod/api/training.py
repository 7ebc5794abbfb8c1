"""Training from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gfgw_prod.api.process_state import process_restored
from gfgw_prod.checkpoint.run_settings import resumable
from gfgw_prod.process.exit_codes import FINISHED
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.presets import DEFAULT, settings_file
from gfgw_prod.settings.reading import read_yaml


def load_config(name: str | Path = DEFAULT, **changes: Any) -> Config:
    """Read the settings of a preset or a YAML file, as ``gfgw train --config NAME`` does.

    Args:
        changes: settings that win over the file's, by section: ``train={"total_kimg": 1}``.

    Raises:
        UserError: if there is no such preset or file, or a setting is wrong; in one line.
    """
    return resumable(read_yaml(name if isinstance(name, Path) else settings_file(name)), changes)


def train(config: Config) -> bool:
    """Train, or resume, the run in ``config.run.dir``; under torchrun, as one of its ranks.

    Ctrl-C raises ``KeyboardInterrupt``; SIGTERM and SIGUSR1 save the state and return. Afterwards the process has its
    own signal handlers, torch settings and environment again. In a thread other than the main one no signal handlers
    are installed: such a run ends by itself.

    Returns:
        ``False`` after a stop signal; the same call resumes the run. Else ``True``.

    Raises:
        UserError: for settings, data, weights or checkpoints that cannot work, or a second run in this process; in one
            line.
        NoProgressError: if checkpoints cannot be saved, or bad numbers come back.
    """
    with process_restored():
        from gfgw_prod.training import trainer

        return trainer.train(config) == FINISHED
