"""``python -m tests.gpu PRESET [--step N] [SECTION.SETTING=VALUE ...]``: waits and launches of one step by phase.

``python -m tests.gpu cifar10 train.kept_passes=8`` counts the second step of ``configs/cifar10.yaml``, of 256 images.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import yaml

from .steps import CountedStep, counted_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("changes", nargs="*", metavar="section.setting=value")
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--operations", type=int, default=12, help="how many of the most launched are listed")
    chosen = parser.parse_intermixed_args()
    changes: dict[str, Any] = {}
    for each in chosen.changes:
        name, _, value = each.partition("=")
        section, _, setting = name.partition(".")
        changes.setdefault(section, {})[setting] = yaml.safe_load(value)
    show(counted_step(chosen.preset, changes, step=chosen.step), chosen.operations)


def show(found: CountedStep, operations: int) -> None:
    """Print a table of the phases, then each wait and the operations with the most launches."""
    print(f"{'phase':<12}{'launches':>10}{'waits':>8}")
    for phase, counts in {**found.phases, "step": found.total}.items():
        print(f"{phase:<12}{counts.launches.total():>10,}{counts.waits.total():>8,}")
    print(f"memory: {found.state_bytes / 2**20:,.0f} MiB before the step, at most {found.most_bytes / 2**20:,.0f} MiB")
    for title, counter, count in (("waits", found.total.waits, None), ("launches", found.total.launches, operations)):
        _list(title, counter, count)


def _list(title: str, counter: Counter[str], count: int | None) -> None:
    print(f"{title}:")
    for name, times in counter.most_common(count):
        print(f"{times:>8,}  {name}")


if __name__ == "__main__":
    main()
