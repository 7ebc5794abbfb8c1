"""Invalid settings, derived from the schema of all settings: each is wrong by construction."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from gfgw_prod.settings.config import Config

Schema = dict[str, Any]
SCHEMA = Config.model_json_schema()
LONG = "x" * 70_000
WORDS = ["many", "1.5.2", "1,2,3,x", "0x", "½", "一", "--", "[", "{}", "'", "NaN?", "1e", "\u202e1", " "]
NO_NUMBERS: list[Any] = [
    *WORDS,
    "",
    [],
    {},
    [1],
    {"a": 1},
    None,
    "nan",
    "-inf",
    "1e999",
    float("nan"),
    float("inf"),
    True,
]
MISSPELT = ("drop", "double", "swap", "suffix", "accent", "capital", "inside")


def leaves(schema: Schema = SCHEMA, prefix: str = "") -> Iterator[tuple[str, Schema]]:
    """Dotted name and JSON schema of every setting."""
    for name, entry in schema["properties"].items():
        if "$ref" in entry:
            yield from leaves(SCHEMA["$defs"][entry["$ref"].rpartition("/")[2]], f"{prefix}{name}.")
        else:
            yield prefix + name, entry


LEAVES = dict(leaves())
SECTIONS = sorted({name.partition(".")[0] for name in LEAVES if "." in name})


def bounds(schema: Schema) -> tuple[float | None, float | None]:
    """Lower and upper bound of a number, inclusive or not."""
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    return low, schema.get("maximum", schema.get("exclusiveMaximum"))


def wrong_numbers(schema: Schema) -> list[Any]:
    low, high = bounds(schema)
    wrong = list(NO_NUMBERS)
    if schema["type"] == "integer":
        wrong += [low + 0.5 if low is not None else 0.5, "1.25", 10**30, -(10**30), int("9" * 4000), 2**64]
    if low is not None:
        wrong += [low - 1, -1e300, *([low] if "exclusiveMinimum" in schema else [])]
    if high is not None:
        wrong += [high + 1 if high < 2**52 else high * 2, 1e300, *([high] if "exclusiveMaximum" in schema else [])]
    if "multipleOf" in schema:
        wrong.append(schema["multipleOf"] * 3 + 1)
    return wrong


def wrong_values(schema: Schema) -> list[Any]:
    """YAML values that a setting with this schema must refuse."""
    if "anyOf" in schema:  # of something or null
        something = next(each for each in schema["anyOf"] if each["type"] != "null")
        return [value for value in wrong_values(something) if value is not None]
    if "enum" in schema:
        first = schema["enum"][0]
        return [
            *WORDS,
            "",
            None,
            5,
            True,
            [first],
            {first: first},
            first.upper(),
            first[:-1],
            first + "\0",
            first + "\n",
            LONG,
        ]
    match schema["type"]:
        case "integer" | "number":
            return wrong_numbers(schema)
        case "boolean":
            return [*WORDS, "", None, 2, -1, 0, 0.5, [], {}, [True], {"a": True}, "truely", "off", "yes", LONG]
        case "string" if schema.get("format") == "path":
            return [5, 0.5, None, [], ["a"], {}, {"a": "b"}, True, "off", "", "a\0b", "\0", b"a", "a\ud800b"]
        case "string":
            return [5, 0.5, None, [], ["a"], {}, {"a": "b"}, True, "a\0b", b"a"]
        case "array":
            return list(wrong_sequences(schema))
    raise AssertionError(f"nothing known of {schema}")


def wrong_sequences(schema: Schema) -> Iterator[Any]:
    yield from [5, 0.5, None, {}, True, "", "x", "[", "[1,", [[]], [{}], [None], [[1], [2]], {1: 2}]
    if "prefixItems" in schema:
        length = len(schema["prefixItems"])
        yield from ([], [0.5], [0.25] * (length + 1), [0.25] * 5000)
        for wrong in wrong_numbers(schema["prefixItems"][0]):
            yield [wrong, *[0.5] * (length - 1)]
            yield [*[0.5] * (length - 1), wrong]
    else:
        if schema.get("minItems"):
            yield []
        for wrong in wrong_numbers(schema["items"]):
            yield [1, wrong]


def as_option(value: Any) -> str | None:
    """A wrong value as an argument; ``None`` if it is valid or impossible there."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict | bytes):
        return None
    word = str(value)
    return None if "\0" in word or "\ud800" in word else word


def wrong_options(schema: Schema) -> list[str]:
    something = next((each for each in schema.get("anyOf", []) if each["type"] != "null"), schema)
    words = [word for word in map(as_option, wrong_values(schema)) if word is not None]
    if something["type"] == "string" and "enum" not in something:  # any word is text on the command line
        return ["a\udcffb", *(["", "~nobody-here/x"] if something.get("format") == "path" else [])]
    if something["type"] == "array":  # one number is a sequence of one there
        return [
            "x",
            "[",
            "[1,",
            "1,x",
            "[1,2",
            "[]]",
            "-5,1",
            "nan,1",
            '{"a":1}',
            *(["0.5"] if "prefixItems" in schema else []),
        ]
    return words


def nested(name: str, value: Any, spelling: str = "_") -> dict[str, Any]:
    """Content of a settings file that sets one setting."""
    section, _, key = name.replace("_", spelling).partition(".")
    return {section: {key: value}} if key else {section: value}


def misspelt(name: str, random_numbers: random.Random) -> str:
    """A misspelt name of a setting."""
    while True:
        at = random_numbers.randrange(len(name))
        made = {
            "drop": name[:at] + name[at + 1 :],
            "double": name[:at] + name[at] + name[at:],
            "swap": name[:at] + name[at : at + 2][::-1] + name[at + 2 :],
            "suffix": name + "s",
            "accent": name[:at] + "é" + name[at + 1 :],
            "capital": name.swapcase(),
            "inside": f"{name}.{name.rpartition('.')[2]}",
        }[random_numbers.choice(MISSPELT)]
        plain = made.replace("-", "_")
        if plain not in LEAVES and plain not in SECTIONS and made.strip(".-") == made and made:
            return made
