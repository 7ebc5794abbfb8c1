"""The same digits, built in, as files of three kinds and packed, train the same weights."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from gfgw_prod.commands import cli
from gfgw_prod.data.sources import load_table
from gfgw_prod.settings.data import DataSettings
from tests import image_files

from . import runs

STEPS = 20
KIMG = str(STEPS * runs.SMALL_BATCH / 1000)
OPTIONS = (*runs.SMALL, "--train.total-kimg", KIMG, "--checkpoint.every-kimg", KIMG)
GREY = ("--data.grey", "true", "--data.peak", "16")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, digits = tmp_path_factory.mktemp("digits"), load_table(DataSettings())
    images, labels = digits.images.numpy(), digits.labels.tolist()
    image_files.write_class_folders(place / "classes", images, labels)
    image_files.write_folder(place / "folder", images, labels)
    image_files.write_zip(place / "digits.zip", images, labels)
    image_files.write_parquet(place / "parquet", images, labels, files=2)
    return place


def test_digits_train_the_same_weights_from_any_source(files: Path, tmp_path: Path) -> None:
    source = ("--data.source", "folder", "--data.path", str(files / "folder"), *GREY)
    assert cli.main(["pack", str(tmp_path / "pack"), *source, "--shard-rows", "500", "--workers", "0"]) == 0
    variants = {
        "built in": (1, ("--data.workers", "0")),
        "folder": (1, ("--data.source", "folder", "--data.path", str(files / "classes"), *GREY)),
        "zip": (2, ("--data.source", "zip", "--data.path", str(files / "digits.zip"), *GREY, "--data.workers", "4")),
        "parquet": (1, ("--data.source", "parquet", "--data.path", str(files / "parquet"), *GREY)),
        "packed": (2, ("--data.source", "packed", "--data.path", str(tmp_path / "pack"), "--data.workers", "4")),
    }
    commands = {
        name: (
            lambda name=name, ranks=ranks, options=options: runs.train(tmp_path / name, *OPTIONS, *options, ranks=ranks)
        )
        for name, (ranks, options) in variants.items()
    }
    runs.execute_all(commands)
    expected = runs.digests(tmp_path / "built in"), runs.losses(tmp_path / "built in")
    assert list(expected[0]) == [STEPS]
    for name in variants:
        assert (runs.digests(tmp_path / name), runs.losses(tmp_path / name)) == expected, name
        assert all(0 <= record["speed/data_wait_ratio"] < 1 for record in runs.records(tmp_path / name)[:1])

    # A run can be resumed with the same data in another form, but not with other data.
    more = ("--train.total-kimg", str(float(KIMG) + 0.064))
    runs.train(tmp_path / "folder", *OPTIONS, *variants["packed"][1], *more)
    other = ("--data.source", "photos", "--generator.channel-mult", "[1]")
    refused = runs.execute(runs.training(tmp_path / "folder", *OPTIONS, *other, *more))
    assert "the contents of the data set" in refused.complaint


def test_damaged_pack_ends_a_run_on_any_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pack", str(tmp_path / "pack"), "--shard-rows", "600"]) == 0
    shard = tmp_path / "pack" / "images-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    options = ("--data.source", "packed", "--data.path", str(tmp_path / "pack"))
    two = runs.execute_ranks(2, runs.training(tmp_path / "two", *options))
    assert "images-00002.bin is damaged" in two.stderr
    assert cli.main(["pack", str(tmp_path / "pack"), "--verify"]) == 2
    assert "images-00002.bin is damaged" in capsys.readouterr().err


def test_invalid_images_are_named_once_and_the_run_continues_without_them(files: Path, tmp_path: Path) -> None:
    digits = load_table(DataSettings())
    place = image_files.write_folder(tmp_path / "set", digits.images[:100].numpy(), digits.labels[:100].tolist())
    (place / image_files.name_of(7)).write_bytes(b"")
    options = ("--data.source", "folder", "--data.path", str(place), *GREY)
    ended = runs.train(
        tmp_path / "run", *runs.SMALL, *options, "--data.on-error", "skip", "--train.total-kimg", "0.064"
    )
    assert ended.stderr.count(f"skipped {image_files.name_of(7)}: is empty") == 1


def test_killed_packing_leaves_no_processes_and_the_same_command_packs(files: Path, tmp_path: Path) -> None:
    source = ("--data.source", "zip", "--data.path", str(files / "digits.zip"), *GREY, "--shard-rows", "30")
    command = [*runs.GFGW, "pack", str(tmp_path / "pack"), *source, "--workers", "2"]
    process = runs.start(command)
    runs.wait_until(lambda: list((tmp_path / "pack").glob("images-*.bin")), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    assert runs.outcome_of(process).code == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while left := [child for child in children if _runs(child)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    again, whole = (
        runs.execute([*command, "--json"]),
        runs.execute([*command[:4], str(tmp_path / "whole"), *command[5:]]),
    )
    assert (again.code, whole.code) == (0, 0)
    found, expected = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("pack", "whole")
    )
    assert found == expected
    assert json.loads(again.stdout)["rows"] == 1797


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
