"""What a start says of itself: its first lines, the history of the run, and the command that goes on."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from gfgw_prod.commands import cli
from gfgw_prod.process.standard_streams import Warned, log, log_as_json, log_times
from gfgw_prod.telemetry import build
from gfgw_prod.training.log_lines import command

from ..process import runs

TINY = (
    *("--features.extractor", "pixels", "--generator.channel-mult", "[1]", "--generator.model-channels", "8"),
    *("--train.batch-size", "8", "--train.cell-size", "8", "--telemetry.sample-grid", "1"),
)


def test_first_lines_history_and_manifests_say_what_a_run_is(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gfgw", "train"])
    run_dir, manifests, cores = tmp_path / "run", [], len(os.sched_getaffinity(0))
    for steps, begins in ((1, "begins"), (2, "resumes from step-00000001")):
        command = ["train", "--run.dir", str(run_dir), *TINY, "--train.total-kimg", str(steps * 8 / 1000)]
        assert cli.main(command) == 0
        first, *others = capsys.readouterr().err.splitlines()
        assert " gfgw_prod 0." in first
        said = "\n".join([first, *others])
        for words in (
            "1 rank on 1 node (",
            *([f" 1 of {cores} cores in use; make train"] if cores > 1 else []),
            "data: digits, 1,797 images of 1 x 8 x 8, 10 classes",
            " parameters; coupling: full scope, argmax targets",
            f"run: {run_dir} {begins}; {steps * 8 / 1000:g} kimg in {steps} steps",
        ):
            assert words in said
        assert (" schedules: those of 0.008 kimg, with which the run began; beyond" in said) == (steps == 2)
        manifests.append(runs.manifest(run_dir, steps))
    assert cli.main(["train", "--run.dir", str(run_dir), *TINY, "--train.total-kimg", "0.008"]) == 2
    assert "has trained 0.016 kimg, more than train.total_kimg 0.008" in capsys.readouterr().err
    history = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    assert [start["resumed_step"] for start in history] == [0, 1]
    assert history == [manifest["start"] for manifest in manifests]
    assert history[0]["hosts"] == {os.uname().nodename: 1}
    assert [start["cause"] for start in history] == [None, None]  # the first had finished
    assert history[0]["command"].startswith("gfgw ")


@pytest.mark.parametrize(("colour", "is_said"), [((9, 9, 9), True), ((9, 9, 8), False)])
def test_start_says_that_all_pictures_are_grey(
    tmp_path: Path, capsys: pytest.CaptureFixture, colour: tuple[int, int, int], is_said: bool
) -> None:
    (pictures := tmp_path / "pictures").mkdir()
    for number, colours in enumerate([(3, 3, 3), (200, 200, 200), colour] * 4):
        Image.new("RGB", (8, 8), colours).save(pictures / f"{number}.png")
    data = "--data.source", "folder", "--data.path", str(pictures)
    assert cli.main(["train", "--run.dir", str(tmp_path / "run"), *TINY, *data, "--train.total-kimg", "0.008"]) == 0
    assert ("all images are grey; data.grey true" in capsys.readouterr().err) == is_said


@pytest.mark.parametrize(
    ("called", "words", "expected"),
    [
        ("make train", "--config a.yaml --train.total-kimg 100", 'make train ARGS="--train.total-kimg 200"'),
        (
            "make train CONFIG=b.yaml",
            "--config b.yaml --train.total_kimg=100 --data.path 'a b'",
            "make train CONFIG=b.yaml ARGS=\"--data.path 'a b' --train.total-kimg 200\"",
        ),
        (
            "make train",
            "--config a.yaml --run.dir '$HOME'",
            f"make train ARGS={shlex.quote('--run.dir ' + chr(39) + '$$HOME' + chr(39) + ' --train.total-kimg 200')}",
        ),
        ("launch/elastic.sh", "--config a.yaml", "launch/elastic.sh --config a.yaml --train.total-kimg 200"),
    ],
)
def test_the_command_that_goes_on(called: str, words: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GFGW_PROGRAM", called)
    monkeypatch.setattr(sys, "argv", ["gfgw", "train", *shlex.split(words)])
    assert command(200) == expected


@pytest.mark.parametrize(
    ("called", "words", "expected"),
    [
        ("make train", "--config a.yaml", "make train"),
        ("make train", "--config a.yaml --seed 3", 'make train ARGS="--seed 3"'),
        ("launch/elastic.sh", "--config a.yaml --seed 3", "launch/elastic.sh --config a.yaml --seed 3"),
    ],
)
def test_the_command_that_resumes(called: str, words: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GFGW_PROGRAM", called)
    monkeypatch.setattr(sys, "argv", ["gfgw", "train", *shlex.split(words)])
    assert command() == expected


def test_the_command_that_goes_on_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GFGW_PROGRAM", raising=False)
    monkeypatch.setattr(sys, "argv", ["gfgw", "train", "--config", "a.yaml"])
    assert command(0.5).endswith("gfgw train --config a.yaml --train.total-kimg 0.5")
    monkeypatch.setattr(sys, "argv", ["notebook.py"])
    assert command(0.5) == "the same with --train.total-kimg 0.5"


@pytest.mark.parametrize("option", ["--resume", "--resume-from", "--continue"])
def test_options_to_resume_get_a_hint(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", option, "runs/digits"]) == 2
    assert "a run resumes by itself" in capsys.readouterr().err


def test_lines_are_json_for_collectors(capsys: pytest.CaptureFixture[str]) -> None:
    log_as_json("runs/a", rank=3)
    log("step 7: \x1b[31m\n")
    log("gfgw: it ends", "error")
    log(Warned("a save failed"))
    first, second, third = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("Z")
    host = os.uname().nodename
    assert first == {"level": "info", "host": host, "rank": 3, "run": "runs/a", "message": "step 7: \x1b[31m\n"}
    assert (second["level"], second["message"]) == ("error", "gfgw: it ends")
    assert (third["level"], third["message"]) == ("warning", "a save failed")


def test_every_line_of_a_run_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--run.dir", str(tmp_path), *TINY, "--train.total-kimg", "0.008"]
    assert cli.main([*command, "--telemetry.log-format", "json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(line["run"] == str(tmp_path) for line in lines)
    assert cli.main([*command, "--telemetry.log-format", "json", "--seed", "1"]) == 2
    assert json.loads(capsys.readouterr().err)["level"] == "error"


def test_text_has_times_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    log("before the run")
    log_times()
    log("within it")
    before, within = capsys.readouterr().err.splitlines()
    assert before == "before the run"
    time, _, line = within.partition(" ")
    assert (len(time), line) == (20, "within it")


def test_revision_is_the_image_s_or_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code.py").write_text("")
    monkeypatch.setattr(build, "CHECKOUT", tmp_path)
    revision = build.revision.__wrapped__
    monkeypatch.delenv(build.REVISION, raising=False)
    assert revision() == ""
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert revision() == head[:12]
    (tmp_path / "code.py").write_text("changed = True")
    assert revision() == f"{head[:12]}-dirty"
    monkeypatch.setenv(build.REVISION, "of-the-image")
    assert revision() == "of-the-image"
