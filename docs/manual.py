"""``python -m docs.manual settings|exit-codes``: prints a page of docs/ that is made from code."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gfgw_prod.process.exit_codes import CODES
from gfgw_prod.resilience.same_run import is_free
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.types import as_written

SETTINGS_HEAD = """\
# Settings

<!-- Made by `make docs` from gfgw_prod/settings/config.py and the settings beside it: change them there. -->

Every setting can stand in the YAML file of `--config`, where sections nest, and on the command line, where it wins:
`--train.batch-size 256`. `-` and `_` are alike; lists are written `[1, 2]`, nothing `null`. Environment variables set
nothing. A value out of its range, a name that is no setting, and settings that do not go together get one line and exit
code 2. The run keeps what it was started with, every setting spelled out, in `config.yaml`.

One kimg is 1,000 images. A run may go on with another value of what is *free*: it touches no weight, or what it names
(data, files of weights) has a fingerprint of its own. Any other change is refused when a run is resumed, unless
`run.allow_changes` is set ([determinism.md](determinism.md)).
"""
CODES_HEAD = """\
# Exit codes

<!-- Made by `make docs` from gfgw_prod/process/exit_codes.py: change it there. -->

All commands and both launchers exit with one of these codes. Under `launch/elastic.sh` all nodes of a job exit with the
code of the node that ended it; a node that gets a stop signal exits alone.
[faults.md](faults.md#what-a-stop-signal-does) has what a stop signal does in each phase.
"""
WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}


def settings_page() -> str:
    """Every setting with its type, range, default and meaning, as Markdown."""
    parts = [SETTINGS_HEAD, "## At the top\n", *_table("", {"seed": Config.model_fields["seed"]})]
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            parts += [f"\n## {name}\n", f"{(field.description or '').capitalize()}.\n"]
            parts += _table(f"{name}.", field.annotation.model_fields)
    return "\n".join(parts) + "\n"


def exit_codes_page() -> str:
    """Every exit code, as Markdown."""
    rows = ["| code | meaning | launcher does |", "|---|---|---|"]
    rows += [f"| {code.number} | {code.meaning} | {code.launcher} |" for code in CODES]
    return CODES_HEAD + "\n" + "\n".join(rows) + "\n"


def _table(prefix: str, fields: dict[str, FieldInfo]) -> Iterator[str]:
    yield "| setting | value | default | what it does | |"
    yield "|---|---|---|---|---|"
    for name, field in fields.items():
        full = prefix + name
        value = _type(field.annotation, field.metadata)
        free = "free " if is_free(full) else ""
        told = (field.description or "").replace("|", "\\|")
        yield f"| `{full}` | {value} | {_written(field.default)} | {told} | {free}|"


def _type(annotation: Any, constraints: list[Any]) -> str:
    """A type and its range in words."""
    limits = list(constraints)
    while get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        limits = [*inner, *limits]
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if get_origin(annotation) in (Union, types.UnionType):
        words = [_type(each, limits) for each in arguments if each is not type(None)]
        return ", ".join([*words, "or `null`"] if type(None) in arguments else words)
    if get_origin(annotation) is tuple:
        if arguments[-1] is ...:
            return f"list of: {_type(arguments[0], [])}"
        return f"list of {len(arguments)}: {_type(arguments[0], [])}"
    return WORDS[annotation] + _range(limits)


def _range(limits: list[Any]) -> str:
    found: dict[str, Any] = {}
    for limit in limits:
        for each in getattr(limit, "metadata", [limit]):  # of a Field, or of what is one already
            for name in ("gt", "ge", "lt", "le", "multiple_of"):
                if (bound := getattr(each, name, None)) is not None:
                    found[name] = bound
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    words = [f"{sign} {_number(found[name])}" for name, sign in signs.items() if name in found]
    words += [f"a multiple of {found['multiple_of']}"] if "multiple_of" in found else []
    return (" " if words else "") + ", ".join(words)


def _number(value: float) -> str:
    if value == 2**63:
        return "2^63"
    return f"{value:,}" if isinstance(value, int) else re.sub(r"e([-+])0?", r"e\1", f"{value:g}").replace("e+", "e")


def _written(default: Any) -> str:
    """A default as YAML has it."""
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{as_written(default)}`" if str(default) else '`""`'


PAGES = {"settings": settings_page, "exit-codes": exit_codes_page}

if __name__ == "__main__":
    print(PAGES[sys.argv[1]](), end="")
