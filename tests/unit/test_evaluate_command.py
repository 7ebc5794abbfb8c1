"""The command ``evaluate``: its data set, and its files of weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gfgw_prod.commands import cli
from gfgw_prod.data.sources import load_table
from gfgw_prod.evaluation.metric_spaces import choose_spaces
from gfgw_prod.evaluation.spaces import WeightFiles
from gfgw_prod.generator import build_generator
from gfgw_prod.sampling.trained import TrainedGenerator, to_safetensors
from gfgw_prod.settings.data import DataSettings
from gfgw_prod.settings.networks import DINOV2, GeneratorSettings
from gfgw_prod.settings.reading import resolve
from tests import image_files

SMALL = GeneratorSettings(model_channels=8, channel_mult=(1,), num_blocks=1, attention_resolutions=())
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)
SMALL_VIT = f"timm:{DINOV2}@224"
LABELS = [row % 3 for row in range(30)]


@pytest.fixture(autouse=True)
def no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights are cached."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: None)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two sets of images that differ in one number."""
    other = IMAGES.copy()
    other[7, 1, 2, 3] ^= 1
    return (
        image_files.write_folder(tmp_path / "its", IMAGES, LABELS),
        image_files.write_folder(tmp_path / "other", other, LABELS),
    )


def exported(place: Path, **settings: dict[str, Any]) -> Path:
    """An exported generator with the settings and the fingerprint of a data set."""
    config = resolve({"generator": SMALL.model_dump(), "features": {"extractor": "pixels"}}, settings)
    table = load_table(config.data)
    tensors = build_generator(SMALL, table.image_shape, table.num_classes, seed=0).state_dict()
    trained = TrainedGenerator(
        tensors,
        config.model_dump(mode="json"),
        table.image_shape,
        table.num_classes,
        step=1,
        images=8,
        weights="ema",
        weights_sha256="ab" * 32,
        data_fingerprint=table.fingerprint(),
    )
    place.write_bytes(to_safetensors(trained))
    return place


def evaluate(place: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    torch.set_num_threads(1)
    code = cli.main(["evaluate", str(place), "--num", "20", "--json", "--metrics", "fd", *options])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def fingerprint(folder: Path) -> str:
    return load_table(DataSettings(source="folder", path=folder)).fingerprint()


def test_data_other_than_the_training_set_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    its, other = folders
    file = exported(tmp_path / "g.safetensors", data={"source": "folder", "path": str(its)})
    expected = fingerprint(its)
    code, out, _ = evaluate(file, capsys=capsys)
    assert code == 0
    assert json.loads(out)["data"]["sha256"] == json.loads(out)["data"]["trained_on_sha256"] == expected

    wrong = (
        f"gfgw: the generator was trained on another data set, with fingerprint {expected}; this one has "
        f"{fingerprint(other)}; name its own with --data-path, or allow this one with --other-data\n"
    )
    assert evaluate(file, "--data-path", str(other), capsys=capsys) == (2, "", wrong)
    code, out, _ = evaluate(file, "--data-path", str(other), "--other-data", capsys=capsys)
    assert code == 0
    assert json.loads(out)["data"]["sha256"] == fingerprint(other)
    assert json.loads(out)["data"]["trained_on_sha256"] == expected

    its.rename(tmp_path / "moved")
    code, _, err = evaluate(file, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert err.endswith("; evaluate --data-path says where the data set is now\n")
    other.rename(its)  # at the path of the run's own
    assert evaluate(file, capsys=capsys) == (2, "", wrong)
    assert evaluate(file, "--data-path", str(tmp_path / "moved"), capsys=capsys)[0] == 0


def test_samples_from_files_are_measured_as_those_of_a_generator(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    its, _ = folders
    packed = tmp_path / "packed"
    assert cli.main(["pack", str(packed), "--data.source", "folder", "--data.path", str(its)]) == 0
    capsys.readouterr()
    file = exported(tmp_path / "g.safetensors", data={"source": "packed", "path": str(packed)})
    some = image_files.write_folder(tmp_path / "some", IMAGES[:20], LABELS[:20])

    def measured(*options: str) -> dict[str, Any]:
        torch.set_num_threads(1)
        assert cli.main(["evaluate", "--metrics", "fd,coverage,memorisation", "--json", *options]) == 0
        out, err = capsys.readouterr()
        assert "fd in pixels is of " in err  # fewer than 192 dimensions
        found: dict[str, Any] = json.loads(out)
        return found

    of_some = measured(str(file), "--samples", str(some), "--halves")
    assert of_some["num"] == 20
    assert of_some["copies"] == of_some["class_agreement"] == 1
    assert of_some["halves_fd"] > of_some["fd"] > 0
    assert of_some["halves_copies"] == 0

    settings = tmp_path / "settings.yaml"
    settings.write_text("data: {source: folder}\nfeatures: {extractor: pixels}\n")
    whole = measured("--config", str(settings), "--data-path", str(its), "--samples", str(its))
    assert whole["fd"] == pytest.approx(0, abs=1e-10)
    assert whole["coverage"] == 1
    assert "step" not in whole

    flat = image_files.write_folder(tmp_path / "flat", IMAGES[:20, :, :4], LABELS[:20])
    for wrong, line in (
        (
            ("--samples", str(flat)),
            f"--samples {flat}: its images (c, h, w) are (3, 4, 8), those of the data set (3, 8, 8)",
        ),
        (("--samples", str(file)), f"--samples {file} is not a directory"),
        (("--samples", str(some), "--config", str(settings)), "evaluate takes a run, or"),
        (("--samples", str(some), "--raw"), "--num and --raw are for samples of a generator"),
    ):
        assert cli.main(["evaluate", str(file), "--metrics", "fd", *wrong]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert err.startswith(f"gfgw: {line}")


def test_transparent_samples_are_put_on_the_background_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clear" / "class").mkdir(parents=True)
    for row, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 4), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "clear" / "class" / f"{row}.png")
    settings, place = tmp_path / "settings.yaml", str(tmp_path / "clear")
    command = ["evaluate", "--config", str(settings), "--data-path", place, "--samples", place, "--metrics", "coverage"]
    for background in ("white", "black"):
        settings.write_text(f"data: {{source: folder, background: {background}}}\nfeatures: {{extractor: pixels}}\n")
        assert cli.main([*command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["coverage"] == 1


def test_built_in_data_has_no_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = exported(tmp_path / "g.safetensors")
    line = "gfgw: --data-path should be left out: the run's data.source digits is built in\n"
    assert evaluate(file, "--data-path", str(tmp_path), capsys=capsys) == (2, "", line)


def test_missing_weights_are_named_in_one_line(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = {"inception": str(tmp_path / "inception"), "dinov2": str(tmp_path / "large")}
    file = exported(
        tmp_path / "g.safetensors",
        data={"source": "folder", "path": str(folders[0])},
        features={"extractor": "dinov2", "weights": str(tmp_path / "small")},
        evaluation=gone,
    )
    for asked, option, name in (
        (("--features", "run"), "--weights", "small"),
        (("--metrics", "fid"), "--inception", "inception"),
        (("--metrics", "fd-dinov2"), "--dinov2", "large"),
    ):
        code, _, err = evaluate(file, *asked, capsys=capsys)
        assert code == 2
        assert re.fullmatch(rf"gfgw: f.* the run's own {tmp_path}/{name} is gone; .*evaluate {option}\).*\n", err)
        code, _, err = evaluate(file, *asked, option, str(tmp_path / "nothing"), capsys=capsys)
        assert code == 2
        assert re.fullmatch(rf"gfgw: .* no file {tmp_path}/nothing; .*\n", err)
    code, _, err = evaluate(file, "--metrics", "fd,kid", capsys=capsys)  # not needed here
    assert code == 0
    assert re.search(
        r"^evaluate: kid is measured on pixels: the weights of inception are missing; the run's", err, re.M
    )
    assert re.search(
        rf"^evaluate: fd is measured on pixels: the weights of {SMALL_VIT} are missing; the run's", err, re.M
    )


def test_weights_come_from_the_command_line_or_else_from_the_run(tmp_path: Path) -> None:
    here, there, gone = tmp_path / "here", tmp_path / "there", tmp_path / "gone"
    for file in (here, there):
        file.touch()
    files = WeightFiles({"inception": here, "dinov2": gone, f"timm:{DINOV2}": gone}).replaced_by({"dinov2": there})
    assert [files.find(name) for name in ("inception", "dinov2", SMALL_VIT)] == [here, there, None]
    assert files.gone == {f"timm:{DINOV2}": gone}
    chosen = choose_spaces(None, "auto", files, SMALL_VIT, 64)
    assert chosen.by_metric["fd"] == "pixels"
    assert any("pr is measured on pixels" in note for note in chosen.notes)
