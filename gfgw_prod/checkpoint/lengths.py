"""Lengths of schedules that are shares of a run's length, when the run is resumed with another length."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from gfgw_prod.checkpoint.run_settings import file_to_read
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.config import Config, shares_by_section
from gfgw_prod.settings.reading import read_yaml, resolve


def resumable(*layers: Mapping[str, Any]) -> Config:
    """``resolve`` the layers. Lengths that none of them sets are those of the run in ``run.dir``, if there is one.

    So ``train.total_kimg`` may make a run longer, and its schedules stay those that it began with.
    """
    config = resolve(*layers)
    try:
        if not (config.checkpoint.root or os.listdir(config.run.dir / "checkpoints")):
            return config
        began = read_yaml(file_to_read(config.run.dir))
    except (OSError, UserError):  # a new run
        return config
    kept: dict[str, Any] = {}
    for section, names in shares_by_section().items():
        recorded = began.get(section)
        kept[section] = {n: recorded[n] for n in names if n in recorded} if isinstance(recorded, dict) else {}
    return resolve(kept, *layers)
