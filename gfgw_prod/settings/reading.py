"""Reads settings from a YAML file and the command line into a ``Config``, with one clear line for any error."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import reprlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from gfgw_prod.process.durable import write_whole
from gfgw_prod.process.exit_codes import UserError, one_line
from gfgw_prod.process.settings_snapshot import MOST_BYTES, snapshot_of
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.presets import settings_file
from gfgw_prod.settings.removed import without_removed

SETTINGS_HELP = "Every setting can stand in the YAML file and on the command line, which wins. - and _ are alike."


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, and aliases, which can multiply. Booleans are YAML 1.2's: ``off`` is a word."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = key.value.replace("-", "_") if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{_shown(name)} is given twice", key.start_mark)
            seen |= {name} - {None}
        return super().construct_mapping(node, deep)


_BOOLEAN = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN, re.compile("^(true|True|TRUE|false|False|FALSE)$"), [*"tTfF"])


class _Short(reprlib.Repr):
    """Values shortened to fit in a line."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 100

    def repr_int(self, x: int, level: int) -> str:  # Python refuses to print thousands of digits
        return repr(x) if x.bit_length() < 200 else f"a number of {x.bit_length()} bits"


_shown = _Short().repr


def setting_names(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from setting_names(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add every setting as an option ``--section.name``; ``parsed`` reads them."""
    source: CliSettingsSource[Any] = CliSettingsSource(
        Config,
        root_parser=parser,
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_parse_none_str="null",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(settings=source)


def parsed(options: argparse.Namespace) -> dict[str, Any]:
    """The settings among parsed options, nested; ``UserError`` if a value does not have its setting's form."""
    given = dict(vars(options))
    source = given.pop("settings")
    try:
        return dict(source(parsed_args=argparse.Namespace(**given))())
    except SettingsError as error:
        raise UserError(f"bad setting on the command line: {one_line(error)}") from None


def configuration(options: argparse.Namespace) -> Config:
    """The configuration of the file ``options.config``, or the preset for none, and the command line, which wins.

    Raises:
        UserError: if the file cannot be read, or a setting is wrong.
    """
    return resolve(*layers_of(options))


def layers_of(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the file ``options.config``, or of the preset for none, and of the command line, which wins.

    In a job the file is as its launcher read it.

    Raises:
        UserError: if the file cannot be read.
    """
    file = options.config or settings_file()
    return read_yaml(file, snapshot_of(file)), parsed(options)


def reject_unknown(arguments: Sequence[str]) -> None:
    """Raise ``UserError`` if the first argument unknown to the parser is an option; name the nearest setting."""
    if arguments and arguments[0].startswith("--"):
        raise UserError(_unknown(arguments[0][2:].partition("=")[0].replace("-", "_")))


def read_yaml(path: Path, written: bytes | None = None) -> dict[str, Any]:
    """Read a mapping from a YAML file, or from what was ``written`` in it when it was read before.

    Raises:
        UserError: if the file is missing, is not YAML or is not a mapping.
    """
    if written is None and not os.path.isfile(path):  # a pipe can be read by one rank only, and may have no writer
        problem = f"{path} is not a regular file" if os.path.exists(path) else f"no file {path}"
        raise UserError(f"--config: {problem}")
    try:
        if written is None:
            with path.open("rb") as file:
                written = file.read(MOST_BYTES + 1)
        if len(written) > MOST_BYTES:
            raise UserError(f"--config: {path} has more than {MOST_BYTES:,} bytes; that is not a file of settings")
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
    """Merge layers of settings; later ones win. ``UserError`` for the first that is unknown or out of range."""
    merged: dict[str, Any] = {}
    try:
        for layer in layers:
            _merge(merged, layer)
    except RecursionError:
        raise UserError("the settings contain themselves") from None
    merged = without_removed(merged)
    for name in merged:
        if name not in Config.model_fields:  # pydantic-settings would take some as its own options
            raise UserError(_unknown(name))
    try:
        return Config(**merged)
    except ValidationError as error:
        raise UserError(_explain(error)) from None
    except TypeError as error:  # keys that are not identifiers
        raise UserError(f"bad setting: {one_line(error)}") from None


def as_yaml(config: Config) -> str:
    """The configuration as YAML, with every setting."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def write_yaml(config: Config, path: Path) -> None:
    """Write the configuration as YAML, with every setting."""
    write_whole(path, as_yaml(config).encode())


def _merge(base: dict[str, Any], layer: Mapping[Any, Any]) -> None:
    for name, value in layer.items():
        if not isinstance(name, str):
            raise UserError(f"setting names must be words, not {_shown(name)}")
        key = name.replace("-", "_")
        if isinstance(value, Mapping):
            base[key] = base[key] if isinstance(base.get(key), dict) else {}
            _merge(base[key], value)
        else:
            base[key] = value


def _unknown(name: str) -> str:
    if name in ("resume", "resume_from", "resume_from_checkpoint", "continue", "restart"):
        return f"unknown setting {name}: a run resumes by itself, if it is started again with the same run.dir"
    name = name if len(name) <= 100 else name[:100] + "..."
    names = list(setting_names())
    last = name.rpartition(".")[2]
    # A word without a dot may be a setting without its section, or a misspelt section.
    near = [full for full in names if full.rpartition(".")[2] == last][:1]
    section = name.rpartition(".")[0]
    near = near or [full for full in names if full.startswith(f"{section}.") and last in re.split("[._]", full)][:1]
    if not near and "." not in name:
        names = sorted({full.partition(".")[0] for full in names})
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else "; see train --help"
    return f"unknown setting {name if name.isprintable() else repr(name)}{hint}"


def _explain(error: ValidationError) -> str:
    """The first validation error in one line: the setting, what it should be, and what was given."""
    first = min(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    # Keep names of settings only, without positions in sequences and branches of unions.
    location = [str(part) for part in first["loc"] if isinstance(part, str)]
    if first["type"] == "extra_forbidden":
        return _unknown(".".join(location))
    known = {name for full in setting_names() for name in full.split(".")}
    location = [part for part in location if part in known]
    message = first["msg"].removeprefix("Value error, ")
    if not location:
        return one_line(message)
    if first["type"] == "value_error" and isinstance(first["input"], dict):  # settings that do not fit together
        return one_line(f"{'.'.join(location)}: {message}")
    message = message.removeprefix("Input ").removeprefix("should ")
    return one_line(f"{'.'.join(location)} should {message}, not {_shown(first['input'])}")
