"""Settings: defaults, ranges, clear errors, command line and file."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.arguments import Parser, with_dashes
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.reading import (
    add_settings,
    parsed,
    read_yaml,
    reject_unknown,
    resolve,
    setting_names,
    write_yaml,
)
from gfgw_prod.settings.types import Section

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def from_command_line(*arguments: str, file: dict | None = None) -> Config:
    parser = Parser()
    add_settings(parser)
    options, unknown = parser.parse_known_args(with_dashes(arguments))
    reject_unknown(unknown)
    return resolve(file or {}, parsed(options))


def refusal(*layers: dict) -> str:
    with pytest.raises(UserError) as caught:
        resolve(*layers)
    message = str(caught.value)
    assert "\n" not in message
    return message


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        yield prefix + name, field.description
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")


def test_every_setting_is_described() -> None:
    assert [name for name, description in fields(Config) if not description] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    assert resolve(read_yaml(path)).total_steps > 0


def test_there_are_shipped_configurations() -> None:
    assert {"digits", "cifar10"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_resolved_configuration_survives_its_file(path: Path, tmp_path: Path) -> None:
    config = resolve(read_yaml(path), {"seed": 11, "run": {"dir": "some where/ü"}})
    write_yaml(config, tmp_path / "config.yaml")
    assert resolve(read_yaml(tmp_path / "config.yaml")) == config
    assert sorted(_leaves(yaml.safe_load((tmp_path / "config.yaml").read_text()))) == sorted(setting_names())


def _leaves(nested: dict, prefix: str = "") -> Iterator[str]:
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.parametrize(
    ("layer", "hint"),
    [
        ({"train": {"batchsize": 4}}, "unknown setting train.batchsize; did you mean train.batch_size?"),
        ({"data": {"size": 32}}, "unknown setting data.size; did you mean data.image_size?"),
        ({"trian": {"batch_size": 4}}, "unknown setting trian; did you mean train?"),
        ({"transport": {"epsilom": 1}}, "did you mean transport.epsilon?"),
        ({"sed": 1}, "unknown setting sed; did you mean seed?"),
        ({"batch_size": 1}, "unknown setting batch_size"),
        ({"_env_file": "x"}, "unknown setting _env_file"),
        ({"_cli_parse_args": ["--seed", "5"]}, "unknown setting _cli_parse_args"),
    ],
)
def test_unknown_setting_names_the_nearest(layer: dict, hint: str) -> None:
    assert hint in refusal(layer)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", 2**63),
        ("train.batch_size", 0),
        ("train.batch_size", "many"),
        ("train.total_kimg", float("nan")),
        ("train.total_kimg", float("inf")),
        ("transport.epsilon", 0),
        ("transport.structure_weight", 1.5),
        ("transport.scope", "some"),
        ("generator.dropout", 1.0),
        ("generator.channel_mult", []),
        ("generator.channel_mult", [1, 0]),
        ("optimizer.betas", [0.9, 1.0]),
        ("features.image_size", 7),
        ("telemetry.prometheus_port", 70_000),
        ("time.stage1_range", [0.9, 0.1]),
        ("time.stage1_range", [0.5]),
        ("data.download", "perhaps"),
        ("data.download", "off"),
        ("data.download", 1),
        ("features.cache", "off"),
        ("checkpoint.upload_to", "No"),
        ("run.dir", "~nobody-of-this-name/run"),
        ("run", 5),
    ],
)
def test_value_out_of_range_names_its_setting(name: str, value: object) -> None:
    section, _, key = name.partition(".")
    assert name in refusal({section: {key: value}} if key else {section: value})


def test_batch_must_be_a_multiple_of_the_cell() -> None:
    message = refusal({"train": {"batch_size": 100, "cell_size": 32}})
    assert "train.batch_size (100) must be a multiple of train.cell_size (32)" in message


@pytest.mark.parametrize(
    ("source", "name", "value"),
    [
        ("digits", "path", "digits"),
        ("digits", "grey", True),
        ("photos", "resize", "adm"),
        ("photos", "path", "x"),
        ("cifar10", "peak", 16),
        ("cifar10", "image_size", 16),
        ("digits", "on_error", "skip"),
        ("folder", "download", False),
        ("folder", "image_column", "img"),
        ("zip", "label_column", None),
        ("parquet", "verify", False),
        ("packed", "label_column", "fine_label"),
    ],
)
def test_setting_that_the_source_does_not_read_is_refused(source: str, name: str, value: object) -> None:
    message = refusal({"data": {"source": source, name: value}})
    assert message.startswith(f"data.{name} should be left at ")
    assert f": data.source {source} does not read it" in message


def test_what_is_set_to_its_default_is_refused_nowhere() -> None:
    assert resolve({"data": {"source": "digits", "path": None, "grey": False, "resize": "lanczos"}}) == resolve({})


def test_filter_without_a_size_is_refused() -> None:
    assert "data.resize box needs data.image_size" in refusal({"data": {"source": "zip", "resize": "box"}})


def test_all_that_needs_pixels_is_named_at_once() -> None:
    settings = {"transport": {"noise_weight": 1.0}, "consistency": {"coupled_by": "noise"}}
    needed = "features.pixel_constant 0 and transport.noise_weight 0 and consistency.coupled_by samples"
    message = refusal({"features": {"extractor": "dinov2", "pixel_constant": 0.1}, **settings})
    assert message == f"features.extractor dinov2 needs {needed}"


def test_conditional_generator_refuses_the_pot_backend() -> None:
    assert "transport.backend" in refusal({"generator": {"conditional": True}, "transport": {"backend": "pot"}})


def test_steps_cover_the_whole_length() -> None:
    config = resolve({"train": {"total_kimg": 1, "batch_size": 300, "cell_size": 100}})
    assert (config.cells, config.total_steps) == (3, 4)


def test_later_layers_win_setting_by_setting() -> None:
    config = resolve({"train": {"batch_size": 64, "cell_size": 8}}, {"train": {"batch_size": 128}})
    assert (config.train.batch_size, config.train.cell_size) == (128, 8)


def test_dash_and_underscore_are_alike_in_files_and_options() -> None:
    expected = resolve({"train": {"batch_size": 64}})
    assert resolve({"train": {"batch-size": 64}}) == expected
    assert from_command_line("--train.batch-size", "64") == expected
    assert from_command_line("--train.batch_size=64") == expected


def test_values_keep_their_underscores() -> None:
    assert from_command_line("--run.dir=my_run").run.dir == Path("my_run")


def test_off_in_a_file_is_a_word_and_true_is_a_boolean(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("telemetry: {progress: off}\ndata: {flip: true, download: True, verify: TRUE}\n")
    config = resolve(read_yaml(tmp_path / "c.yaml"))
    assert config.telemetry.progress == "off"
    assert config.data.flip


@pytest.mark.parametrize("word", ["off", "on", "yes", "no", "y", "ON"])
def test_words_are_no_booleans(word: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"data: {{flip: {word}}}\n")
    with pytest.raises(UserError, match=f"data.flip should be true or false, not '{word}'"):
        resolve(read_yaml(tmp_path / "c.yaml"))


PATHS = ["run.dir", "data.path", "features.cache", "features.weights", "generator.pretrained", "loss.lpips_trunk"]
PATHS += ["evaluation.inception", "evaluation.dinov2", "checkpoint.root", "checkpoint.upload_to"]


@pytest.mark.parametrize("name", PATHS)
def test_tilde_is_the_home_directory_in_every_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    section, _, key = name.partition(".")
    layer = {"data": {"source": "folder"}} if section == "data" else {}
    config = resolve(layer, {section: {key: "~/x~"}})
    assert str(getattr(getattr(config, section), key)) == "/home/someone/x~"


def test_all_paths_are_tested() -> None:
    sections = [field.annotation for field in Config.model_fields.values()]
    fields = [each for section in sections if issubclass(section, Section) for each in section.model_fields.items()]
    found = {name for name, field in fields if "Path" in str(field.annotation)}
    assert {"dir", "path"} < found <= {name.partition(".")[2] for name in PATHS}


def test_url_keeps_its_tilde() -> None:
    assert resolve({"checkpoint": {"root": "s3://bucket/~x"}}).checkpoint.root == "s3://bucket/~x"


def test_command_line_wins_over_the_file() -> None:
    config = from_command_line("--seed=2", file={"seed": 1, "train": {"total_kimg": 3}})
    assert (config.seed, config.train.total_kimg) == (2, 3)


def test_lists_and_null_can_be_given_as_options() -> None:
    config = from_command_line(
        "--generator.channel-mult=1,3", "--data.path=null", "--data.flip=true", file={"data": {"path": "x"}}
    )
    assert (config.generator.channel_mult, config.data.path, config.data.flip) == ((1, 3), None, True)


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"train\.batchsize; did you mean train\.batch_size"):
        from_command_line("--train.batchsize=4")


def test_environment_does_not_leak_into_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = resolve({})
    monkeypatch.setenv("SEED", "5")
    monkeypatch.setenv("TRAIN", '{"batch_size": 64}')
    assert resolve({}) == expected == from_command_line()


@pytest.mark.parametrize(
    ("transport", "hint"),
    [
        ({"scope": "full", "geometry": "euclidean"}, "use scope subset"),
        ({"dual": "persistent", "geometry": "euclidean"}, "geometry cosine"),
        ({"backend": "pot", "dual": "persistent"}, "backend native"),
        ({"backend": "pot", "iterations": "fixed"}, "backend native"),
        ({"noise_weight": 1.0, "backend": "pot"}, "noise_weight needs"),
        ({"dual": "fitted", "target": "sample", "epsilon": 0.1, "epsilon_end": 0.1}, "needs scope full, target argmax"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(transport: dict, hint: str) -> None:
    message = refusal({"transport": transport, "features": {"extractor": "dinov2"}})
    assert hint in message
    assert "transport" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("section", "settings", "hint"),
    [
        ("consistency", {"coupled_by": "noise"}, "needs consistency.coupled_by samples"),
        (
            "transport",
            {"dual": "fitted", "scope": "full", "epsilon_end": 0.1, "structure_weight": 0, "structure_weight_end": 0},
            "needs transport.dual fresh or persistent",
        ),
    ],
)
def test_settings_of_another_way_of_training_are_refused(section: str, settings: dict, hint: str) -> None:
    message = refusal({section: settings, "features": {"extractor": "dinov2"}})
    assert hint in message
    assert section in message


def test_settings_of_a_section_that_do_not_go_together_are_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"^transport: geometry euclidean needs dense distances; use scope subset$"):
        resolve({"transport": {"geometry": "euclidean", "scope": "full"}, "features": {"extractor": "pixels"}})
