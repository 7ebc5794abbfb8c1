"""Sinks registered as entry points of the group ``gfgw_prod.sinks``, by any package: docs/extending.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from gfgw_prod.process.exit_codes import UserError, one_line
from gfgw_prod.telemetry.sinks import Sink

GROUP = "gfgw_prod.sinks"


def find_sinks(names: Sequence[str]) -> list[EntryPoint]:
    """The entry points of the given names.

    Raises:
        UserError: if no installed package registers a name.
    """
    found = {each.name: each for each in entry_points(group=GROUP)} if names else {}
    for name in names:
        if name not in found:
            known = ", ".join(sorted(found)) or "none"
            raise UserError(f"telemetry.sinks: no installed package registers {name!r} in {GROUP} (there is {known})")
    return [found[name] for name in names]


def open_sinks(names: Sequence[str], run_dir: Path, settings: Mapping[str, Any], step: int) -> list[Sink]:
    """Load and open registered sinks.

    Args:
        settings: all settings, nested by section.
        step: at which the run starts or resumes.

    Raises:
        UserError: if one is not registered, or cannot be opened.
    """
    opened: list[Sink] = []
    for entry in find_sinks(names):
        try:
            opened.append(entry.load()(run_dir, settings, step))
        except ModuleNotFoundError as error:
            raise UserError(f"telemetry.sinks: {entry.name} needs the package {error.name}; install it") from None
        except (Exception, SystemExit) as error:  # of any kind: a missing library, a login, a server
            raise UserError(f"telemetry.sinks: {entry.name} cannot be opened: {one_line(error, 300)}") from None
    return opened
