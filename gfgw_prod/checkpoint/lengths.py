"""Lengths of schedules that are shares of a run's length, when the run is resumed with another length."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.config import Config, shares_by_section
from gfgw_prod.settings.reading import resolve


def resumable(*layers: Mapping[str, Any]) -> Config:
    """``resolve`` the layers. Lengths that none of them sets are those of the run in ``run.dir``, if there is one.

    So ``train.total_kimg`` may make a run longer, and its schedules stay those that it began with.
    """
    config = resolve(*layers)
    if not os.path.isdir(config.run.dir):
        return config
    from gfgw_prod.checkpoint.finding import find_checkpoints

    try:
        began = find_checkpoints(config.run.dir)[-1].manifest["config"]
    except UserError:
        return config
    kept = {
        section: {name: began[section][name] for name in names if name in began.get(section, {})}
        for section, names in shares_by_section().items()
    }
    return resolve(kept, *layers)
