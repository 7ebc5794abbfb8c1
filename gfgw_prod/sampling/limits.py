"""Limits of what a user may ask of a sampler. Imports nothing heavy."""

from __future__ import annotations

from gfgw_prod.process.exit_codes import UserError

MOST_SAMPLES = 10_000_000


def check_drawing(num: int, seed: int, *, least: int = 1, prefix: str = "") -> None:
    """Raise ``UserError`` if a number is out of range; ``prefix`` stands before names in messages, such as ``--``."""
    check_range(f"{prefix}num", num, least, MOST_SAMPLES)
    if not 0 <= seed < 2**63:
        raise UserError(f"{prefix}seed must be between 0 and 2**63 - 1, not {_shown(seed)}")


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Raise ``UserError`` if a number that a user gives as ``name`` is out of range."""
    if not least <= value <= most:
        raise UserError(f"{name} must be at least {least} and at most {most:,}, not {_shown(value)}")


def _shown(value: int) -> str:
    return str(value) if value.bit_length() < 200 else f"a number of {value.bit_length()} bits"
