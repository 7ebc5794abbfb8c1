"""The parser, arguments and checks that several commands share. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.home import expand_home
from gfgw_prod.settings.presets import settings_file

MOST_SAMPLES = 10_000_000
MOST_STEPS = 1000
GENERATOR = "run directory, one of its checkpoints, or an exported .safetensors file"


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


def path(text: str) -> Path:
    """Type of arguments that are paths."""
    if not text:  # Path("") would be the working directory
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(place(text))


def place(text: str) -> str:
    """Type of arguments that are paths or URLs."""
    try:
        return expand_home(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must {error}") from None


def _settings_file(text: str) -> Path:
    try:
        return settings_file(place(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the option for a file of settings."""
    parser.add_argument(
        "--config", type=_settings_file, metavar="FILE", help="YAML file of settings, or a preset's name"
    )


def add_place(parser: argparse.ArgumentParser, description: str = GENERATOR) -> None:
    """Add the argument for where the weights are."""
    parser.add_argument("place", type=place, metavar="RUN_OR_CHECKPOINT", help=description)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option for JSON output."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_raw(parser: argparse.ArgumentParser) -> None:
    """Add the option for weights as trained."""
    parser.add_argument("--raw", action="store_true", help="weights as trained instead of their average (EMA)")


def add_drawing(parser: argparse.ArgumentParser, num: int) -> None:
    """Add the options of commands that draw samples; ``num`` is the default number."""
    parser.add_argument("--num", "-n", type=int, default=num, help=f"number of images (default: {num})")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument("--steps", type=int, default=1, help="predictions per image, with fresh noise between (1)")
    add_raw(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if present")


def check_drawing(options: argparse.Namespace, least: int = 1) -> None:
    """Check the options of ``add_drawing``.

    Raises:
        UserError: if one is out of range.
    """
    check_range("--num", options.num, least, MOST_SAMPLES)
    check_range("--steps", options.steps, 1, MOST_STEPS)
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed must be between 0 and 2**63 - 1, not {_shown(options.seed)}")


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Check the value of an option.

    Raises:
        UserError: if it is out of range.
    """
    if not least <= value <= most:
        raise UserError(f"{name} must be at least {least} and at most {most:,}, not {_shown(value)}")


def _shown(value: int) -> str:
    return str(value) if value.bit_length() < 200 else f"a number of {value.bit_length()} bits"
