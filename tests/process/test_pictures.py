"""A folder of transparent pictures trains with the preset for it, in pixels and in the features of a real network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.frozen import LITE0, write_lite0

from . import runs

STEPS, BATCH = 4, 32
SMALL = (
    *("--train.total-kimg", str(STEPS * BATCH / 1000), "--train.batch-size", str(BATCH), "--train.cell-size", "8"),
    *("--generator.model-channels", "8", "--generator.channel-mult", "[1,2]", "--telemetry.sample-grid", "4"),
)
ONE_NETWORK = (
    *("--features.pixel-constant", "0", "--consistency.coupled-by", "samples"),
    *("--transport.dual", "fresh", "--transport.target", "sample"),
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured squares in front of nothing, in three classes of 12, 10 and 8."""
    place = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number, name in enumerate(("flags", "animals", "symbols")):
        (place / name).mkdir()
        for index in range(12 - 2 * number):
            pixels = np.zeros((24, 24, 4), dtype=np.uint8)
            top, left = draw.integers(2, 10, 2)
            pixels[top : top + 12, left : left + 12, :3], pixels[top : top + 12, left : left + 12, 3] = (
                draw.integers(0, 256, 3),
                255,
            )
            Image.fromarray(pixels).save(place / name / f"{index}.png")
    return place


def train(pictures: Path, run_dir: Path, *options: str, ranks: int = 1) -> None:
    source = ("--config", "pictures", "--data.path", str(pictures))
    command = [*runs.GFGW, "train", *source, "--run.dir", str(run_dir), *SMALL, *options]
    outcome = runs.execute(command) if ranks == 1 else runs.execute_ranks(ranks, command)
    assert outcome.code == 0, outcome.stderr


def test_pictures_of_ones_own_train_and_their_classes_keep_their_names(pictures: Path, tmp_path: Path) -> None:
    run_dir, out = tmp_path / "run", tmp_path / "out"
    train(pictures, run_dir)
    for name in ("data.png", "samples.png"):
        with Image.open(run_dir / name) as grid:  # three columns, four rows
            assert grid.height * 3 == pytest.approx(grid.width * 4, rel=0.05)
    with Image.open(run_dir / "data.png") as grid:
        assert grid.getpixel((3, 3)) == (255, 255, 255)  # the background
    manifest = runs.manifest(run_dir, STEPS)
    assert manifest["class_names"] == ["animals", "flags", "symbols"]
    assert manifest["config"]["optimizer"]["decay_kimg"] == manifest["config"]["train"]["total_kimg"]
    runs.printed_by("sample", str(run_dir), "--num", "4", "--out", str(out), "--classes", "symbols,animals")
    content = json.loads((out / "dataset.json").read_text())
    assert [label for _, label in content["labels"]] == [2, 0, 2, 0]
    assert content["class_names"] == manifest["class_names"]


@pytest.mark.parametrize("features", ["pixels", "network"])
def test_weights_are_the_same_on_any_number_of_ranks(pictures: Path, tmp_path: Path, features: str) -> None:
    options: tuple[str, ...] = ()
    if features == "network":
        network = ("--features.extractor", "timm", "--features.network", LITE0, "--features.image-size", "32")
        options = (*ONE_NETWORK, *network, "--features.weights", str(write_lite0(tmp_path)))
    train(pictures, tmp_path / "alone", *options)
    shared = (*options, "--distributed.strategy", "fsdp")
    train(pictures, tmp_path / "shared", *shared, "--train.max-minutes", "1e-9", ranks=3)
    assert max(runs.digests(tmp_path / "shared")) < STEPS
    train(pictures, tmp_path / "shared", *options, ranks=2)
    assert runs.digests(tmp_path / "shared")[STEPS] == runs.digests(tmp_path / "alone")[STEPS]
    records = [record for record in runs.records(tmp_path / "alone") if "transport/noise_correlation" in record]
    assert features == "pixels" or all(abs(record["transport/noise_correlation"]) < 0.3 for record in records)
