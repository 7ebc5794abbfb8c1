"""A thousand malformed inputs, the same every time. Each is wrong by construction: none may be accepted."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import yaml

from . import runs
from .malformed_arguments import ARGUMENTS, TOLD
from .malformed_settings import LEAVES, SECTIONS, misspelt, nested, wrong_options, wrong_values
from .malformed_surroundings import ENVIRONMENTS, FILES, SURROUNDINGS, TOGETHER

SEED = 20_240_229
IN_FILES, ON_COMMAND_LINES, MISSPELT = 200, 130, 70
ALONE = ["train", "--config", str(runs.DIGITS), "--telemetry.progress", "off"]
# Variables that must make no difference; each case sets two of them. ``None`` removes one.
NOISE: tuple[tuple[str, str | None], ...] = (
    *(("HOME", each) for each in (None, "/no/such/home", "")),
    *(("TMPDIR", each) for each in (None, "/no/such/directory", "")),
    *(("COLUMNS", each) for each in ("0", "-1", "many", "1")),
    *(("LC_ALL", each) for each in ("C", "xx_YY.nonsense")),
    *(("TERM", each) for each in (None, "dumb", "nonsense")),
    *(("MASTER_PORT", each) for each in ("nonsense", "0")),
    *(("GRACE_SECONDS", each) for each in ("nonsense", "")),
    ("SEED", "nonsense"),
    ("RUN", "{"),
    ("USER", None),
    ("PWD", "/no/such/directory"),
)


@dataclass(frozen=True)
class Case:
    """A command line and its surroundings.

    Args:
        kind: what is wrong, in a word.
        arguments: of ``gfgw``; ``@`` stands for the shared directory of surroundings.
        files: by name in the case's own directory, in which it runs.
        environment: on top of the suite's; ``None`` removes a variable.
        words: that the error line must contain.
        begun: whether the run directory may exist, because the error only shows later.
        stdout, stderr: a file instead of the one that the test reads.
        closed: standard streams by number.
    """

    kind: str
    arguments: list[str]
    files: Mapping[str, bytes] = field(default_factory=dict)
    environment: Mapping[str, str | None] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    begun: bool = False
    stdout: str = ""
    stderr: str = ""
    closed: tuple[int, ...] = ()

    @property
    def needs_torch(self) -> bool:
        """Whether the error only shows after importing torch."""
        if self.kind in ("arguments", "streams"):
            return not {"sample", "inspect", "evaluate", "export", "doctor", "--dry-run", "--run.dir"}.isdisjoint(
                self.arguments
            )
        return self.kind == "surroundings"


def cases() -> list[Case]:
    """All cases in a fixed order. Those about settings are drawn at random from a fixed seed."""
    numbers = random.Random(SEED)
    found = [*_values_in_files(numbers), *_values_on_command_lines(numbers), *_misspelt_names(numbers)]
    found += [Case("files", ["train", "--config", "settings.yaml"], {"settings.yaml": each}) for each in FILES]
    found += [Case("together", _as_options(layer, numbers), words=words) for layer, words in TOGETHER]
    found += [Case("arguments", arguments) for arguments in ARGUMENTS]
    found += [Case("arguments", arguments, words=words) for arguments, words in TOLD]
    found += [Case("surroundings", [*ALONE, *options], words=words, begun=True) for options, words in SURROUNDINGS]
    found += [Case("environments", ALONE, environment=each) for each in ENVIRONMENTS]
    found += list(_streams())
    return [_among_noise(case, numbers) for case in found]


def _values_in_files(numbers: random.Random) -> Iterator[Case]:
    every = [(name, value) for name, schema in LEAVES.items() for value in wrong_values(schema)]
    for name, value in _spread(every, IN_FILES, numbers):
        content = _dumped(nested(name, value, numbers.choice("_-")))
        yield Case("values in files", ["train", "--config", "settings.yaml"], {"settings.yaml": content})
    for section, value in zip(2 * SECTIONS, cycle((5, "digits", [], [{}], True, None, 0.5)), strict=False):
        content = _dumped({section: value})
        yield Case("values in files", ["train", "--config", "settings.yaml"], {"settings.yaml": content})


def _values_on_command_lines(numbers: random.Random) -> Iterator[Case]:
    every = [(name, word) for name, schema in LEAVES.items() for word in wrong_options(schema)]
    for name, word in _spread(every, ON_COMMAND_LINES, numbers):
        option = "--" + name.replace("_", numbers.choice("_-"))
        yield Case("values in options", ["train", *numbers.choice(([option, word], [f"{option}={word}"]))])


def _misspelt_names(numbers: random.Random) -> Iterator[Case]:
    for name in numbers.choices(list(LEAVES), k=MISSPELT // 2):
        wrong = misspelt(name, numbers)
        yield Case("misspelt names", ["train", f"--{wrong}", "1"])
        wrong = misspelt(name, numbers)
        content = _dumped(nested(wrong, 1))
        yield Case("misspelt names", ["train", "--config", "settings.yaml"], {"settings.yaml": content})


def _streams() -> Iterator[Case]:
    """Standard streams that are closed or full: only the exit code remains."""
    wrong = ["train", "--train.batch-size", "0"]
    for closed in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        for arguments in (wrong, ["inspect", "@/empty"], [*ALONE, "--run.dir", "@/file"]):
            yield Case("streams", arguments, closed=closed)
    for arguments in (["--help"], ["train", "--help"], ["train", "--dry-run"], ["doctor", "--json"], ["--version"]):
        yield Case("streams", arguments, stdout="/dev/full")
    yield Case("streams", wrong, stderr="/dev/full")
    yield Case("streams", ["--help"], stdout="/dev/full", stderr="/dev/full")


def _spread(every: list[tuple[str, Any]], count: int, numbers: random.Random) -> list[tuple[str, Any]]:
    """Draw ``count`` of them, evenly over the settings."""
    by_name: dict[str, list[Any]] = {}
    for name, value in numbers.sample(every, len(every)):
        by_name.setdefault(name, []).append(value)
    turns = max(map(len, by_name.values()))
    return [(name, values[i]) for i in range(turns) for name, values in by_name.items() if i < len(values)][:count]


def _dumped(content: Any) -> bytes:
    return yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")


def _as_options(layer: Mapping[str, str], numbers: random.Random) -> list[str]:
    options = [f"--{name.replace('_', numbers.choice('_-'))}={value}" for name, value in layer.items()]
    return ["train", *numbers.sample(options, len(options))]


def _among_noise(case: Case, numbers: random.Random) -> Case:
    noise = dict(numbers.sample(NOISE, 2))
    return Case(**{**vars(case), "environment": {**noise, **case.environment}})
