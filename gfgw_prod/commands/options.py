"""The arguments and checks that several commands share. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.home import expand_home
from gfgw_prod.settings.presets import DEFAULT, presets, settings_file

GENERATOR = "run directory, one of its checkpoints, or an exported .safetensors file"


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
        return settings_file(str(path(text)))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the option for a file of settings."""
    text = f"YAML file of settings, or a preset: {', '.join(presets())} (default: {DEFAULT})"
    parser.add_argument("--config", type=_settings_file, metavar="FILE", help=text)


def add_place(parser: argparse.ArgumentParser, description: str = GENERATOR, *, optional: bool = False) -> None:
    """Add the argument for where the weights are."""
    parser.add_argument(
        "place", type=place, nargs="?" if optional else None, metavar="RUN_OR_CHECKPOINT", help=description
    )


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
    add_raw(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if present")
