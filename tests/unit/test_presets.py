"""A bare word as ``--config`` names a preset, unless there is a file of that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from gfgw_prod.commands.cli import parse
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.presets import presets, settings_file
from gfgw_prod.settings.reading import configuration, read_yaml, resolve

ROOT = Path(__file__).parents[2]


def test_presets_are_the_files_of_configs() -> None:
    assert sorted(presets().values()) == sorted((ROOT / "configs").glob("*.yaml"))


def test_bare_word_names_a_preset_in_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()  # a run of that name is no file of settings
    for name in presets():
        by_name = configuration(parse(["train", "--config", name])[1])
        assert by_name == configuration(parse(["train", "--config", str(ROOT / "configs" / f"{name}.yaml")])[1])


def test_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("seed: 7\n")
    assert configuration(parse(["train", "--config", "digits"])[1]).seed == 7


@pytest.mark.parametrize("path", ["./digits", "digits.yaml", "configs/digits"])
def test_separator_or_suffix_means_a_path(path: str) -> None:
    assert settings_file(path) == Path(path)


def test_unknown_name_lists_the_presets_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"'digit'; presets are cifar10, digits, imagenet64, pictures, pictures_network, seed_report$"
    ) as caught:
        parse(["train", "--config", "digit"])
    assert "\n" not in str(caught.value)


TRAIN_THE_DIGITS = {
    *("features.extractor", "generator.model_channels", "generator.channel_mult", "generator.num_blocks"),
    *("generator.attention_resolutions", "generator.dropout", "time.stage1_kimg", "optimizer.lr"),
    *("train.total_kimg", "checkpoint.every_kimg", "telemetry.samples_every_kimg"),
}


@pytest.mark.parametrize("name", ["cifar10", "imagenet64", "seed_report"])
def test_preset_of_other_data_states_each_setting_whose_default_is_for_the_digits(name: str) -> None:
    written = read_yaml(presets()[name])
    assert {f"{section}.{each}" for section, values in written.items() for each in values} >= TRAIN_THE_DIGITS


def test_defaults_need_no_weights_and_no_files() -> None:
    config = resolve({})
    assert config.data.source == "digits"
    assert config.features.extractor == "pixels"
    assert config.loss.lpips == 0
    assert config.generator.pretrained is None
