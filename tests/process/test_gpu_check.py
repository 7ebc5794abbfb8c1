"""`make gpu-check` on a CPU, at small sizes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.check import Place, Row, run_parts
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.variants import VARIANTS

from . import runs

CHECK = (sys.executable, "-m", "benchmarks.gpu")


@pytest.mark.timeout(900)  # seven runs in processes of their own
def test_every_part_passes_and_is_kept(tmp_path: Path) -> None:
    outcome = runs.execute([*CHECK, "--out", str(tmp_path / "rows.json")], cwd=runs.ROOT)
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["part"] for row in rows} >= PARTS.keys()
    assert len(outcome.stdout.splitlines()) == len(rows) + 1
    assert outcome.stdout.splitlines()[-1].startswith("passed: 0 of ")
    figures = {row["what"]: row["value"] for row in rows if row["part"] == "speed"}
    assert all(value > 0 for value in figures.values())


def test_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sped"])
    assert "unknown part sped; there are: versions" in capsys.readouterr().err


def test_part_that_raises_is_a_failed_row_and_the_next_ones_run() -> None:
    def fails(_: Place) -> list[Row]:
        raise ValueError("no kernel\nfor this device")

    shown: list[Row] = []
    rows = run_parts({"bad": fails, "good": lambda _: [Row("good", "one", 1, True)]}, None, shown.append)  # type: ignore[arg-type]
    assert rows == shown
    assert [(row.part, row.value, row.good) for row in rows if row.good is not None] == [
        ("bad", "no kernel", False),
        ("good", 1, True),
    ]


def test_variants_are_settings(tmp_path: Path) -> None:
    from benchmarks.gpu.full_size import local_config

    base = local_config("digits", {}, tmp_path)
    assert all(local_config("digits", changes, tmp_path) != base for changes in VARIANTS.values())
