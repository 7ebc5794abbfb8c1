"""What settings are made of: numbers with a least and a greatest value, text, paths, and groups of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def as_written(value: object) -> str:
    """A setting's value as it is written in a file of settings."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("be a number")
    return value


def _name(value: object) -> object:
    if isinstance(value, bytes):  # which YAML can hold, and pydantic would decode
        raise ValueError("be text")
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= character <= "\udfff" for character in value)):
        raise ValueError("be text that a file system takes")
    return value


def _path(value: object) -> object:
    if value == "":  # which would mean the present directory
        raise ValueError("be a path")
    return _name(value)


# Every number has a least and a greatest value. The greatest are far beyond what is of use, and can be computed with.
Whole = Annotated[int, BeforeValidator(_no_truth_value)]
Real = Annotated[float, BeforeValidator(_no_truth_value)]
Text = Annotated[str, BeforeValidator(_name)]
UserPath = Annotated[Path, BeforeValidator(_path)]
Count = Annotated[Whole, Field(ge=1, le=1_000_000)]
Positive = Annotated[Real, Field(gt=0, le=1e9)]
NonNegative = Annotated[Real, Field(ge=0, le=1e9)]
Weight = Annotated[Real, Field(ge=0, le=1e6)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
TimeRange = tuple[Fraction, Fraction]
Epsilon = Annotated[Real, Field(ge=1e-4, le=1e3)]  # below it, float32 logits have no digits left
Decay = Annotated[Real, Field(ge=0, lt=1)]
Kimg = Annotated[Real, Field(gt=0, le=1e9)]


class Section(BaseModel):
    """A group of settings; unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
