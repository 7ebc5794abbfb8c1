"""Options of the commands that draw samples, ``sample`` and ``evaluate``, checked before anything heavy is imported."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gfgw_prod import __version__
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings import reading
from gfgw_prod.settings.evaluation import FEATURES, METRICS, EvaluationMetric, Features

if TYPE_CHECKING:
    from gfgw_prod.settings.config import Config

MOST_SAMPLES = 10_000_000
MOST_STEPS = 1000
MOST_CLASSES = 100_000


def add_sample_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``sample``."""
    add_place(parser, also=", or an exported .safetensors file")
    _add_drawing(parser, num=64)
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="directory for the images")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--grid", action="store_true", help="one picture of all images instead of a file each")
    form.add_argument(
        "--npz", action="store_true", help="one samples.npz of arr_0, uint8 (n, h, w, c), and arr_1, classes"
    )
    parser.add_argument("--classes", metavar="LIST", help="classes in turn, as in 0,3-5 (default: all)")
    parser.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="images in memory; the images are the same (256)"
    )


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``evaluate``."""
    add_place(parser, also=", or an exported .safetensors file")
    parser.add_argument("--metrics", metavar="LIST", help=f"of {','.join(METRICS)} (default: all at hand)")
    parser.add_argument(
        "--features",
        choices=FEATURES,
        default="auto",
        help="space of fd, kid, pr, coverage and memorisation (auto: the run's own; kid on inception if at hand)",
    )
    _add_drawing(parser, num=5000)
    parser.add_argument("--json", action="store_true", help="print JSON")
    for name, what in (
        ("--inception", "torch-fidelity's Inception weights"),
        ("--dinov2", "timm's DINOv2 ViT-L/14 weights"),
        ("--dinov2-small", "timm's DINOv2 ViT-S/14 weights, where the run's features.weights are now"),
        ("--data-path", "where the data set is now (default: data.path of the run)"),
    ):
        parser.add_argument(name, type=path, metavar="PATH", help=what)
    parser.add_argument(
        "--other-data", action="store_true", help="measure against data that the run was not trained on, if they are"
    )


def add_place(parser: argparse.ArgumentParser, also: str = "") -> None:
    """The argument that says whose weights."""
    described = f"run directory or one of its checkpoints{also}"
    parser.add_argument("place", metavar="RUN_OR_CHECKPOINT", help=described)


def path(word: str) -> Path:
    """A path on the command line."""
    if not word:  # which would mean the present directory
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(word)


def class_list(text: str) -> tuple[int, ...]:
    """Class ids of a list such as ``0,3-5``, in its order.

    Raises:
        UserError: if it is no such list.
    """
    found: list[int] = []
    for part in text.split(","):
        if (match := re.fullmatch(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?\s*", part, re.ASCII)) is None:
            raise UserError(f"--classes should be class ids and ranges such as 0,3-5, not {text[:100]!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"--classes: {first}-{last} goes backwards; write {last}-{first}")
        found += range(first, last + 1)
        if len(found) > MOST_CLASSES:
            raise UserError(f"--classes names more than {MOST_CLASSES:,} classes")
    return tuple(found)


def metric_list(text: str) -> tuple[EvaluationMetric, ...]:
    """Metrics of a list such as ``fd,kid``.

    Raises:
        UserError: for one that is not known.
    """
    words = [word.strip().replace("_", "-") for word in text.split(",")]
    known: dict[str, EvaluationMetric] = {metric: metric for metric in METRICS}
    for word in words:
        if word not in known:
            raise UserError(f"--metrics should be some of {', '.join(METRICS)}, not {word[:100]!r}")
    return _once(known[word] for word in words)


def _once(metrics: Iterable[EvaluationMetric]) -> tuple[EvaluationMetric, ...]:
    return tuple(dict.fromkeys(metrics))


def _add_drawing(parser: argparse.ArgumentParser, num: int) -> None:
    parser.add_argument("--num", "-n", type=int, default=num, help=f"number of images (default: {num})")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument("--steps", type=int, default=1, help="predictions of an image, with fresh noise between (1)")
    parser.add_argument("--raw", action="store_true", help="weights as trained instead of their average (EMA)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if present")


def _check_drawing(chosen: argparse.Namespace) -> None:
    if not 0 <= chosen.seed < 2**63:
        raise UserError(f"--seed must be between 0 and 2**63 - 1, not {_shown(chosen.seed)}")
    _check("--steps", chosen.steps, 1, MOST_STEPS)


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UserError(f"{name} must be at least {least} and at most {most:,}, not {_shown(value)}")


def _shown(value: int) -> str:
    return str(value) if value.bit_length() < 200 else f"a number of {value.bit_length()} bits"


SETTINGS_HELP = (
    "Every setting can stand in the YAML file and on the command line; the command line wins. - and _ are alike."
)


class Parsed(NamedTuple):
    """A command line that was understood: options by name, and the settings of the commands that have them."""

    command: str
    options: argparse.Namespace
    config: Config | None


def parsed(arguments: Sequence[str]) -> Parsed:
    """What a command line asks for; nothing is done.

    Raises:
        UserError: if it is no command, or a setting is wrong.
        SystemExit: after help or the version was printed.
    """
    parser = reading.Parser(prog="gfgw", description="Trainer of one-step image generators by GFGW flow matching.")
    parser.add_argument("--version", action="version", version=f"gfgw_prod {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=reading.Parser)

    train = commands.add_parser(
        "train",
        help="train or resume a run, alone or under torchrun",
        description="Trains, or resumes the run in run.dir. " + SETTINGS_HELP,
        usage="gfgw train [--config FILE] [--dry-run [--json] [--ranks N]] [--SECTION.NAME VALUE ...]",
    )
    train.add_argument("--config", type=path, metavar="FILE", help="YAML file of settings")
    train.add_argument(
        "--dry-run", action="store_true", help="build on the meta device and print what the run would take"
    )
    train.add_argument("--json", action="store_true", help="with --dry-run: print JSON")
    train.add_argument("--ranks", type=int, metavar="N", help="with --dry-run: ranks to plan for (1)")

    pack = commands.add_parser(
        "pack",
        help="decode a data set once, into files that training maps into memory",
        description="Packs the data set of the settings into OUT; what a killed process has packed is kept. "
        + SETTINGS_HELP,
        usage="gfgw pack OUT [--verify] [--config FILE] [--workers N] [--shard-rows N] [--json] [--data.X Y ...]",
    )
    pack.add_argument("out", type=path, metavar="OUT", help="directory of the pack, new or of an unfinished one")
    pack.add_argument("--verify", action="store_true", help="hash the files of a finished pack: exit code 2 if damaged")
    pack.add_argument("--config", type=path, metavar="FILE", help="YAML file of settings")
    pack.add_argument("--workers", type=int, metavar="N", help="processes that decode (as many as CPUs); 0: this one")
    pack.add_argument("--shard-rows", type=int, metavar="N", help="images in a file (as many as 256 MiB hold)")
    pack.add_argument("--json", action="store_true", help="print JSON")

    sample = commands.add_parser("sample", help="draw images from a checkpoint or an exported generator")
    evaluate = commands.add_parser("evaluate", help="measure samples of a generator against the data set")
    add_sample_options(sample)
    add_evaluate_options(evaluate)

    export = commands.add_parser("export", help="write the generator as one file for other programs")
    add_place(export, also=", or an exported .safetensors file")
    export.add_argument(
        "--format",
        choices=("safetensors", "onnx"),
        required=True,
        help="safetensors: weights and settings, for gfgw_prod.sampling.trained.load_generator; "
        "onnx: noise in, images out",
    )
    export.add_argument("--out", type=path, required=True, metavar="FILE", help="file to write, whole or not at all")
    export.add_argument("--raw", action="store_true", help="weights as trained instead of their average (EMA)")

    inspect = commands.add_parser("inspect", help="list checkpoints with step, images and whether they are whole")
    add_place(inspect)
    inspect.add_argument("--verify", action="store_true", help="leave with exit code 2 if any is damaged")
    inspect.add_argument("--json", action="store_true", help="print JSON")

    doctor = commands.add_parser("doctor", help="check that this machine can train")
    doctor.add_argument("--json", action="store_true", help="print JSON")

    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        raise UserError("name a command: train, pack, sample, evaluate, export, inspect or doctor (see gfgw --help)")
    with_settings = {"train": train, "pack": pack}.get(arguments[0])
    if with_settings is not None:
        return _with_settings(arguments[0], with_settings, arguments[1:])
    chosen, rest = parser.parse_known_args(reading.normalised(arguments))
    if rest:
        raise UserError(f"{chosen.command}: unexpected argument {rest[0]!r}; see gfgw {chosen.command} --help")
    return Parsed(chosen.command, chosen, None)


def _with_settings(command: str, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Parsed:
    source = reading.add_settings(parser)
    chosen, rest = parser.parse_known_args(reading.normalised(arguments))
    reading.reject_unknown(rest)
    if command == "train" and not chosen.dry_run and (chosen.json or chosen.ranks is not None):
        raise UserError("--json and --ranks go with --dry-run")
    from_file = reading.read_yaml(chosen.config) if chosen.config else {}
    return Parsed(command, chosen, reading.resolve(from_file, reading.parsed(source, chosen)))


@dataclass(frozen=True)
class Asked:
    """What the command line asks for; ``None`` is the run's own, or all that can be measured."""

    metrics: Sequence[EvaluationMetric] | None
    features: Features
    num: int
    seed: int
    steps: int
    raw: bool
    as_json: bool
    device: str
    data_path: Path | None
    inception: Path | None
    dinov2: Path | None
    dinov2_small: Path | None = None
    other_data: bool = False
