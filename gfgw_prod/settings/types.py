"""Types of settings: bounded numbers, text, paths, and sections."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gfgw_prod.process.home import expand_home

# Where a path is meant, these words are a mistake for null or an empty path.
SWITCHES = {"off", "on", "no", "yes", "false", "true"}


def as_written(value: object) -> str:
    """A setting's value as YAML."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _reject_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("be a number")
    return value


def _as_file_name(value: object) -> object:
    if isinstance(value, bytes):  # YAML has bytes, which pydantic would decode
        raise ValueError("be text")
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= character <= "\udfff" for character in value)):
        raise ValueError("be text that a file system takes")
    return value


def _as_path(value: object) -> object:
    if value == "":  # Path("") would be the working directory
        raise ValueError("be a path")
    return _as_place(value)


def _as_place(value: object) -> object:
    value = _as_file_name(value)
    if not isinstance(value, str | Path):
        return value
    if str(value).lower() in SWITCHES:
        raise ValueError(f"be a path; write ./{value} for a directory of that name")
    return expand_home(str(value))


def _as_flag(value: object) -> object:
    word = value.lower() if isinstance(value, str) else value
    if word not in ("true", "false") and not isinstance(value, bool):  # pydantic would take off, yes, 1 and t too
        raise ValueError("be true or false")
    return value


def _as_choice(value: object) -> object:
    word = as_written(value).lower()
    return word if word in ("true", "false") else value


# Every number has bounds. Upper bounds are far beyond useful values, but safe to compute with.
Whole = Annotated[int, BeforeValidator(_reject_bool)]
Real = Annotated[float, BeforeValidator(_reject_bool)]
Text = Annotated[str, BeforeValidator(_as_file_name)]
UserPath = Annotated[Path, BeforeValidator(_as_path)]
Place = Annotated[str, BeforeValidator(_as_place)]  # a directory or a URL, or nothing
Flag = Annotated[bool, BeforeValidator(_as_flag)]
AutoFlag = Annotated[Literal["auto", "true", "false"], BeforeValidator(_as_choice)]
Count = Annotated[Whole, Field(ge=1, le=1_000_000)]
Positive = Annotated[Real, Field(gt=0, le=1e9)]
NonNegative = Annotated[Real, Field(ge=0, le=1e9)]
Weight = Annotated[Real, Field(ge=0, le=1e6)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
TimeRange = tuple[Fraction, Fraction]
Epsilon = Annotated[Real, Field(ge=1e-4, le=1e3)]  # below 1e-4, float32 logits lose all digits
BelowOne = Annotated[Real, Field(ge=0, lt=1)]


def setting(default: Any, description: str, **bounds: Any) -> Any:
    """A setting with its default and description; ``bounds`` are those of pydantic's ``Field``."""
    return Field(default, description=description, **bounds)


@dataclass(frozen=True)
class Share:
    """A default in kimg: a share of ``train.total_kimg``, which ``Config`` puts in its place."""

    of_total: float = 1.0

    def __str__(self) -> str:
        return "train.total_kimg" if self.of_total == 1 else f"{self.of_total:g} train.total_kimg"


class Section(BaseModel):
    """A group of settings; unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
