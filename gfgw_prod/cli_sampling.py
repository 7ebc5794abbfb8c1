"""Options of the commands that draw samples, ``sample`` and ``evaluate``, checked before anything heavy is imported."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from gfgw_prod.distributed.torchrun import place
from gfgw_prod.evaluation.names import FEATURES, FEWEST, METRICS, MOST, Metric
from gfgw_prod.resilience.exit_codes import UserError

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


def run_sample(chosen: argparse.Namespace) -> int:
    """Checks the options of ``sample`` and does it.

    Raises:
        UserError: for a value that makes no sense, and whatever ``sample_images`` refuses.
    """
    _check("--num", chosen.num, 1, MOST_SAMPLES)
    _check_drawing(chosen)
    _check("--batch-size", chosen.batch_size, 1, MOST_SAMPLES)
    classes = None if chosen.classes is None else class_list(chosen.classes)
    place()  # a malformed environment is refused before torch is imported
    from gfgw_prod.sample_command import Request, sample_images

    return sample_images(
        chosen.place,
        Request(
            count=chosen.num,
            out=chosen.out,
            form="npz" if chosen.npz else "grid" if chosen.grid else "png",
            seed=chosen.seed,
            classes=classes,
            steps=chosen.steps,
            batch_size=chosen.batch_size,
            raw=chosen.raw,
            device=chosen.device,
        ),
    )


def run_evaluate(chosen: argparse.Namespace) -> int:
    """Checks the options of ``evaluate`` and does it.

    Raises:
        UserError: for a value that makes no sense, and whatever ``evaluate`` refuses.
    """
    _check("--num", chosen.num, FEWEST, MOST)
    _check_drawing(chosen)
    metrics = None if chosen.metrics is None else metric_list(chosen.metrics)
    place()  # a malformed environment is refused before torch is imported
    from gfgw_prod.evaluation.asked import Asked
    from gfgw_prod.evaluation.command import evaluate

    return evaluate(
        chosen.place,
        Asked(
            metrics=metrics,
            features=chosen.features,
            num=chosen.num,
            seed=chosen.seed,
            steps=chosen.steps,
            raw=chosen.raw,
            as_json=chosen.json,
            device=chosen.device,
            data_path=chosen.data_path,
            inception=chosen.inception,
            dinov2=chosen.dinov2,
            dinov2_small=chosen.dinov2_small,
            other_data=chosen.other_data,
        ),
    )


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


def metric_list(text: str) -> tuple[Metric, ...]:
    """Metrics of a list such as ``fd,kid``.

    Raises:
        UserError: for one that is not known.
    """
    words = [word.strip().replace("_", "-") for word in text.split(",")]
    known: dict[str, Metric] = {metric: metric for metric in METRICS}
    for word in words:
        if word not in known:
            raise UserError(f"--metrics should be some of {', '.join(METRICS)}, not {word[:100]!r}")
    return _once(known[word] for word in words)


def _once(metrics: Iterable[Metric]) -> tuple[Metric, ...]:
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
