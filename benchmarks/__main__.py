"""``python -m benchmarks [NAME ...]``: the named benchmarks, or all but ``quality``, which takes options of its own."""

from __future__ import annotations

import sys

import benchmarks.quality.__main__ as quality
from benchmarks import (
    auditing,
    data,
    in_place,
    kills,
    losses,
    memory,
    nodes,
    overhead,
    recovery,
    reduction,
    saving,
    scraping,
    startup,
    transport,
)
from benchmarks.quality import digits_quality, digits_targets

BENCHMARKS = {
    "startup": startup.main,
    "recovery": recovery.main,
    "losses": losses.main,
    "kills": kills.main,
    "nodes": nodes.main,
    "transport": transport.main,
    "overhead": overhead.main,
    "reduction": reduction.main,
    "auditing": auditing.main,
    "in-place": in_place.main,
    "saving": saving.main,
    "data": data.main,
    "memory": memory.main,
    "scraping": scraping.main,
    "digits-quality": digits_quality.main,
    "digits-targets": digits_targets.main,
}


def main() -> int:
    if sys.argv[1:2] == ["quality"]:  # takes half an hour or more, so it runs only by name
        quality.main(sys.argv[2:])
        return 0
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"unknown benchmark {unknown[0]}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in names:
        print(f"== {name}", flush=True)
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
