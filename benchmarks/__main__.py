"""``python -m benchmarks [NAME ...]``: all benchmarks, or those named."""

from __future__ import annotations

import sys

from benchmarks import auditing, digits_quality, digits_targets, recovery, reduction, saving, startup, transport

BENCHMARKS = {
    "startup": startup.main,
    "recovery": recovery.main,
    "transport": transport.main,
    "reduction": reduction.main,
    "auditing": auditing.main,
    "saving": saving.main,
    "digits-quality": digits_quality.main,
    "digits-targets": digits_targets.main,
}


def main() -> int:
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
