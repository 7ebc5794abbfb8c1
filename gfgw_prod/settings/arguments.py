"""Command lines: one clear line for a wrong one, and ``-`` and ``_`` alike in names. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from gfgw_prod.process.exit_codes import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``UserError`` with one line instead of printing its usage."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, **kwargs)

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file)  # argparse would ignore an output that cannot be written

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """Spell option names with ``-`` instead of ``_``; values stay as they are."""
    result = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        result.append(name.replace("_", "-") + equals + value if name.startswith("--") else argument)
    return result
