"""Progress of long operations: a bar in a terminal, lines in a log, nothing from other ranks."""

from __future__ import annotations

import os
import pty
import sys
import time
from pathlib import Path

import pytest

from gfgw_prod.commands import cli
from gfgw_prod.process import meter
from gfgw_prod.process.meter import MB, Meter


@pytest.fixture(autouse=True)
def print_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print at every update, not only every ten seconds."""
    monkeypatch.setattr(meter, "LINE_SECONDS", 0.0)


def test_log_gets_lines_with_amount_and_rate(capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("packing", 2000, "images") as one:
        for done in (500, 1500):  # the first 500 were done before this start
            one.advance_to(done)
        one.show("comparing")
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("gfgw: packing: 500 of 2,000 images, 0 images/s")
    assert second.startswith("gfgw: packing: 1,500 of 2,000 images, ")
    assert third == "gfgw: comparing"


def test_lines_are_rare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "LINE_SECONDS", 1000.0)
    with Meter("packing", 2000) as one:
        one.advance_to(1)
        one.advance_to(2)
    assert capsys.readouterr().err == ""


def test_bytes_are_shown_in_megabytes(capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("checking", 5_000_000, "MB", scale=MB) as one:
        one.advance(1_000_000)
        one.advance(2_000_000)
    assert "gfgw: checking: 3 of 5 MB, " in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"enabled": False}, {"mode": "off"}, {"enabled": False, "mode": "bar"}], ids=str)
def test_other_ranks_are_silent(options: dict, capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("packing", 10, **options) as one:
        one.advance_to(5)
    assert capsys.readouterr().err == ""


def test_terminal_gets_a_bar_and_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, writes = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with os.fdopen(writes, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Meter("packing", 10, "images") as one:
            one.advance_to(10)
            one.log("skipped one.png: is empty")
        stream.write("end")
        stream.flush()
        shown = ""
        while not shown.endswith("end"):  # written already, so this ends
            shown += os.read(reads, 1 << 16).decode(errors="replace")
    os.close(reads)
    assert "packing" in shown
    assert "10 of 10 images" in shown
    assert "skipped one.png: is empty" in shown
    assert shown.index("\x1b[?25l") < shown.index("\x1b[?25h")  # hides the cursor, and shows it again


def test_every_long_operation_shows_its_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, pack = str(tmp_path / "run"), str(tmp_path / "pack")
    tiny = ("--features.extractor", "pixels", "--generator.channel-mult", "[1]", "--generator.model-channels", "8")
    size = ("--train.batch-size", "8", "--train.cell-size", "8", "--train.total-kimg", "0.008")
    from_pack = ("--data.source", "packed", "--data.path", pack, "--transport.scope", "full")
    train = ["train", "--run.dir", run, *tiny, *size, *from_pack, "--telemetry.sample-grid", "1"]
    for command, expected in (
        (["pack", pack], ["packing: 256 of 1,797 images"]),
        (["pack", pack, "--verify"], [f"checking {pack}: 0 of 0 MB"]),
        (
            train,
            [
                f"checking {pack}",
                "encoding the bank: 1,797 of 1,797 rows of rank 0",
                "training: 8 of 8 images",
                ", loss ",
            ],
        ),
        (train, ["checking step-00000001: "]),
        (["inspect", run], [f"checking {run}: "]),
        (["sample", run, "--num", "9", "--out", str(tmp_path / "out")], ["drawing samples: 9 of 9 images"]),
        (
            ["evaluate", run, "--num", "40", "--metrics", "fd"],
            ["encoding the data: 1,536 of 1,797 images", "drawing samples: 0 of 40", "gfgw: comparing pixels"],
        ),
    ):
        assert cli.main(command) == 0, capsys.readouterr().err
        lines = capsys.readouterr().err
        for each in expected:
            assert each in lines, command


def test_a_log_is_never_silent_for_long(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "LINE_SECONDS", 1000.0)
    monkeypatch.setattr(meter, "SILENT_SECONDS", 0.2)
    said = ""
    with Meter("training", 2000, "images") as one:
        one.advance_to(500, "loss 0.5")
        one.advance_to(501)
        deadline = time.monotonic() + 30
        while said.count("\n") < 2 and time.monotonic() < deadline:  # a long step
            time.sleep(0.05)
            said += capsys.readouterr().err
    assert all("gfgw: training: 501 of 2,000 images, " in line and "loss 0.5" in line for line in said.splitlines())
    assert said.count("\n") >= 2
