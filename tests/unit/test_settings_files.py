"""Any content of a settings file gives a configuration or one clear line."""

import argparse
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gfgw_prod.commands import cli
from gfgw_prod.process import settings_snapshot
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.presets import settings_file
from gfgw_prod.settings.reading import configuration, read_yaml, resolve, setting_names

NAMES = list(setting_names())
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4)
    | st.sampled_from(["1e3", "~", "auto", "0x10", "-1", "digits", "\n", "a\nb"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


def config_or_one_line(layer: dict) -> None:
    problem = "none"
    try:
        assert isinstance(resolve(layer), Config)
    except UserError as error:
        problem = str(error)
    assert problem.strip()
    assert len(problem.splitlines()) == 1


@settings(max_examples=150)
@given(name=st.sampled_from(NAMES), value=values)
def test_any_value_of_any_setting(name: str, value: object) -> None:
    section, _, key = name.partition(".")
    config_or_one_line({section: {key: value}} if key else {section: value})


@given(name=st.sampled_from([*Config.model_fields, "other"]) | st.text(max_size=6) | st.integers(), value=values)
def test_any_value_in_the_place_of_a_section(name: object, value: object) -> None:
    config_or_one_line({name: value})


def test_any_text_as_a_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("files") / "config.yaml"

    @given(content=st.text(max_size=30).map(str.encode) | st.binary(max_size=30) | values.map(_dumped))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        problem = "none"
        try:
            assert isinstance(read_yaml(path), dict)
        except UserError as error:
            problem = str(error)
        assert len(problem.splitlines()) == 1

    check()


def _dumped(value: object) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    "content",
    [
        "train: [",
        "- a\n- b",
        "just words",
        "train:\n\tbatch_size: 4",
        "? [a]\n: b",
        "seed: !!python/object:os.system {}",
        "seed: 2001-99-99",  # looks like a date and is none
        "seed: 0x_",  # looks like a number and is none
    ],
)
def test_file_that_is_no_mapping_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match="--config") as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_alias_to_itself_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("run: &run\n  dir: *run\n")
    with pytest.raises(UserError) as caught:
        resolve(read_yaml(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["missing.yaml", "."])
def test_file_that_cannot_be_read_is_refused_by_name(place: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--config"):
        read_yaml(tmp_path / place)


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert resolve(read_yaml(tmp_path / "config.yaml")) == resolve({})


def options_of(*words: str) -> argparse.Namespace:
    return cli.parse(["train", *words])[1]


@pytest.mark.parametrize("joined", [False, True])
def test_job_goes_on_with_the_file_that_its_launcher_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: bool
) -> None:
    monkeypatch.setattr(os, "environb", {})
    monkeypatch.chdir(tmp_path)
    file, other = Path("c.yaml"), Path("other.yaml")
    file.write_text("seed: 1\ndata: {label_column: é}\n")
    other.write_text("seed: 2\n")
    words = ["--config=c.yaml"] if joined else ["--config", "./c.yaml"]
    settings_snapshot.take(["-m", "gfgw_prod", "train", "--config", "missing.yaml", *words], Path)
    file.write_text("seed: 3\n")
    assert configuration(options_of(*words, "--data.label-column=null", "--data.source=parquet")).seed == 1
    file.unlink()
    assert configuration(options_of(*words, "--seed=4", "--data.source=parquet")).seed == 4
    assert configuration(options_of("--config", "other.yaml")).seed == 2


def test_a_preset_is_held_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environb", {})
    settings_snapshot.take(["train", "--config", "digits"], settings_file)
    assert settings_snapshot.snapshot_of(settings_file("digits")) == settings_file("digits").read_bytes()
    settings_snapshot.take([], settings_file)
    settings_snapshot.take(["train", "--config", "no-preset"], settings_file)
    assert settings_snapshot.snapshot_of(settings_file("digits")) is None


@pytest.mark.parametrize("content", [None, b"x" * 200_000, b"seed: 1\0"], ids=["missing", "too long", "no text"])
def test_file_that_is_no_file_of_settings_is_left_to_the_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setattr(os, "environb", {})
    if content is not None:
        (tmp_path / "c.yaml").write_bytes(content)
    settings_snapshot.take(["--config", str(tmp_path / "c.yaml")], Path)
    assert settings_snapshot.snapshot_of(tmp_path / "c.yaml") is None
    with pytest.raises(UserError, match="--config"):
        configuration(options_of("--config", str(tmp_path / "c.yaml")))
