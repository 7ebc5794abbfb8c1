"""From YAML file and command line to a validated ``Config``, with one clear line for whatever is wrong."""

from __future__ import annotations

import argparse
import difflib
import os
import reprlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from gfgw_prod.process.durable import write_whole
from gfgw_prod.process.exit_codes import UserError, one_line
from gfgw_prod.settings.config import Config

MOST_BYTES = 100_000  # of a settings file: every setting spelled out takes 4,000


class _Loader(yaml.SafeLoader):
    """YAML without what lets a file mean other than it seems to: names given twice, and aliases, which can multiply."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not taken; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = key.value.replace("-", "_") if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{_shown(name)} is given twice", key.start_mark)
            seen |= {name} - {None}
        return super().construct_mapping(node, deep)


class _Short(reprlib.Repr):
    """What was given, cut to a length that fits a line."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 100

    def repr_int(self, x: int, level: int) -> str:  # Python writes none out that has thousands of digits
        return repr(x) if x.bit_length() < 200 else f"a number of {x.bit_length()} bits"


_shown = _Short().repr


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``UserError`` with one line instead of printing its usage."""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file)  # the library would be silent about what cannot be written

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def setting_names(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings, as they are written in YAML."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from setting_names(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def add_settings(parser: argparse.ArgumentParser) -> CliSettingsSource[Any]:
    """Adds every setting as an option ``--section.name`` to the parser; the source turns parsed options into a dict."""
    return CliSettingsSource(
        Config,
        root_parser=parser,
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_parse_none_str="null",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def parsed(source: CliSettingsSource[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings among parsed arguments, nested.

    Raises:
        UserError: if a value is not of its setting's form.
    """
    try:
        return dict(source(parsed_args=arguments)())
    except SettingsError as error:
        raise UserError(f"bad setting on the command line: {one_line(error)}") from None


def normalised(arguments: Sequence[str]) -> list[str]:
    """Options with ``_`` and ``-`` alike: the part before ``=`` of each option in its dashed spelling."""
    result = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        result.append(name.replace("_", "-") + equals + value if name.startswith("--") else argument)
    return result


def reject_unknown(arguments: Sequence[str]) -> None:
    """Raises ``UserError`` for options left over by the parser, naming the nearest setting."""
    for argument in arguments:
        if argument.startswith("--"):
            raise UserError(_unknown(argument[2:].partition("=")[0].replace("-", "_")))
        raise UserError(f"unexpected argument {argument!r}")


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping read from a YAML file.

    Raises:
        UserError: if the file is missing, is not YAML or is not a mapping.
    """
    if not os.path.isfile(path):  # a pipe could be read once, by one rank, and may have no writer
        raise UserError(
            f"--config: {path} is not a regular file" if os.path.exists(path) else f"--config: no file {path}"
        )
    try:
        with path.open("rb") as file:
            written = file.read(MOST_BYTES + 1)
        if len(written) > MOST_BYTES:
            raise UserError(f"--config: {path} has more than {MOST_BYTES:,} bytes: no file of settings")
        content = yaml.load(written.decode("utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config: cannot read {path}: {one_line(error)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--config: {path} is not valid YAML: {one_line(error, 300)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"--config: {path} must be a mapping of settings, not {type(content).__name__}")
    return content


def resolve(*layers: Mapping[str, Any]) -> Config:
    """The configuration of the layers merged, later over earlier.

    Raises:
        UserError: for the first setting that is unknown or out of range.
    """
    merged: dict[str, Any] = {}
    try:
        for layer in layers:
            _merge(merged, layer)
    except RecursionError:
        raise UserError("the settings contain themselves") from None
    for name in merged:
        if name not in Config.model_fields:  # pydantic-settings would take some for options of its own
            raise UserError(_unknown(name))
    try:
        return Config(**merged)
    except ValidationError as error:
        raise UserError(_explain(error)) from None
    except TypeError as error:  # keys that are no identifiers
        raise UserError(f"bad setting: {one_line(error)}") from None


def as_yaml(config: Config) -> str:
    """The resolved configuration, every setting spelled out."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def write_yaml(config: Config, path: Path) -> None:
    """Writes the resolved configuration, every setting spelled out."""
    write_whole(path, as_yaml(config).encode())


def _merge(base: dict[str, Any], layer: Mapping[Any, Any]) -> None:
    for name, value in layer.items():
        if not isinstance(name, str):
            raise UserError(f"setting names must be words, not {_shown(name)}")
        key = name.replace("-", "_")
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        elif isinstance(value, Mapping):
            base[key] = {}
            _merge(base[key], value)
        else:
            base[key] = value


def _unknown(name: str) -> str:
    name = name if len(name) <= 100 else name[:100] + "..."
    names = list(setting_names())
    last = name.rpartition(".")[2]
    # A word of its own may be a setting without its section, or a misspelt section.
    near = [full for full in names if full.rpartition(".")[2] == last][:1]
    if not near and "." not in name:
        names = sorted({full.partition(".")[0] for full in names})
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else "; see train --help"
    return f"unknown setting {name if name.isprintable() else repr(name)}{hint}"


def _explain(error: ValidationError) -> str:
    """The first problem of a validation in one line: the setting, what was given, what would be right."""
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    # Positions inside a sequence and branches of a union are noise to a person; names of settings are not.
    location = [str(part) for part in first["loc"] if isinstance(part, str)]
    known = {name for full in setting_names() for name in full.split(".")}
    if first["type"] == "extra_forbidden":
        return _unknown(".".join(location))
    location = [part for part in location if part in known]
    message = first["msg"].removeprefix("Value error, ")
    if not location:
        return one_line(message)
    message = message.removeprefix("Input ").removeprefix("should ")
    return one_line(f"{'.'.join(location)} should {message}, not {_shown(first['input'])}")
