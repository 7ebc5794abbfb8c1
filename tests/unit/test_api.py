"""The public Python interface: imported lazily, samples like the command, and leaves torch and the process alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.deterministic
from numpy.testing import assert_array_equal
from PIL import Image

import gfgw_prod
from gfgw_prod.api.process_state import process_restored
from gfgw_prod.commands import cli
from gfgw_prod.distributed.arithmetic import CUBLAS, arithmetic_restored, set_arithmetic
from gfgw_prod.generator import build_generator
from gfgw_prod.process.signals import STOP, ignore_stop_signals
from gfgw_prod.sampling.pictures import levels_of
from gfgw_prod.sampling.trained import TrainedGenerator, to_safetensors
from gfgw_prod.settings.networks import GeneratorSettings
from gfgw_prod.settings.reading import resolve

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CPU = torch.device("cpu")
SMALL = {"model_channels": 8, "channel_mult": (1,), "num_blocks": 1, "attention_resolutions": (), "dropout": 0.0}


def exported(path: Path, *, conditional: bool) -> Path:
    """An exported generator of the digits whose output depends on its input."""
    settings = GeneratorSettings(conditional=conditional, **SMALL)
    tensors = build_generator(settings, (1, 8, 8), 10, seed=0).state_dict()
    drawn = torch.Generator().manual_seed(0)
    tensors = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=drawn) for name, tensor in tensors.items()}
    config = resolve({"generator": settings.model_dump(), "features": {"extractor": "pixels"}})
    recorded = config.model_dump(mode="json")
    facts = {"step": 3, "images": 384, "weights": "ema", "weights_sha256": "", "class_names": NAMES}
    trained = TrainedGenerator(tensors, recorded, (1, 8, 8), 10, **facts)
    path.write_bytes(to_safetensors(trained))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return exported(tmp_path / "classes.safetensors", conditional=True)


@pytest.fixture
def classless(tmp_path: Path) -> Path:
    return exported(tmp_path / "classless.safetensors", conditional=False)


def state() -> dict[str, Any]:
    """What calls from Python must leave as it was."""
    return {
        "deterministic": torch.get_deterministic_debug_mode(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "threads": torch.get_num_threads(),
        "environment": dict(os.environ),
        "handlers": {number: signal.getsignal(number) for number in STOP},
        "hook": threading.excepthook,
    }


def test_import_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'pydantic', 'numpy', 'yaml'}"
    code = f"import sys, gfgw_prod; print(gfgw_prod.__version__, *({heavy} & sys.modules.keys()))"
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert done.stdout.split() == [gfgw_prod.__version__]


def test_samples_do_not_depend_on_what_torch_is_set_to(file: Path) -> None:
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            generator = gfgw_prod.load_generator(file, device="cpu")
            found.append((generator.sample(2, labels=[3]), generator.from_noise(noise, labels=[3])))
            assert torch.get_default_dtype() == dtype
        finally:
            torch.set_default_dtype(torch.float32)
    for first, second in zip(*found, strict=True):
        assert first.dtype == second.dtype == torch.float32
        assert torch.equal(first, second)


def test_public_names_are_there_and_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    for name in gfgw_prod.__all__:
        assert getattr(gfgw_prod, name).__doc__, name
        assert name in page, name
        assert name in dir(gfgw_prod)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gfgw_prod.nothing  # noqa: B018


def test_samples_are_those_of_the_command(file: Path, tmp_path: Path) -> None:
    options = ("--num", "40", "--classes", "3,7", "--seed", "5", "--out", str(tmp_path / "out"))
    assert cli.main(["sample", str(file), *options]) == 0
    images = gfgw_prod.load_generator(file).sample(40, [3, 7], seed=5)
    assert images.shape == (40, 1, 8, 8)
    for number, levels in enumerate(levels_of(images)):
        assert_array_equal(np.asarray(Image.open(tmp_path / "out" / f"{number:06d}.png"))[..., 0], levels[0])
    assert images.is_inference()
    assert gfgw_prod.load_generator(file).class_names == NAMES
    assert torch.equal(gfgw_prod.load_generator(file).sample(40, ["three", 7], seed=5), images)


def test_noise_is_mapped_to_images(file: Path, classless: Path) -> None:
    noise = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = gfgw_prod.load_generator(file)
    images = generator.from_noise(noise, torch.tensor([0, 1, 2, 3, 4]))
    assert images.abs().max() <= 1
    torch.testing.assert_close(generator.from_noise(noise[3:4], 3), images[3:4])
    assert not torch.allclose(generator.from_noise(noise, 9), images)
    assert gfgw_prod.load_generator(str(classless)).from_noise(noise).shape == noise.shape


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a class too many": (lambda g: g.sample(4, [0, 10]), "labels must be below 10, the number of classes, not 10"),
    "a negative class": (lambda g: g.sample(4, -1), "labels must be at least 0, not -1"),
    "no classes": (lambda g: g.sample(4), "labels must be given: the generator was trained on 10 classes"),
    "empty classes": (lambda g: g.sample(4, []), "labels must not be empty"),
    "fractions": (lambda g: g.sample(4, [0.5]), "labels must be class ids, .* or among zero, one, .*, nine; not '0.5'"),
    "another name": (lambda g: g.sample(4, "ten"), "labels must be class ids, .*; not 'ten'"),
    "no classes for noise": (lambda g: g.from_noise(torch.zeros(1, 1, 8, 8)), "labels must be given: .*"),
    "a class too many for noise": (lambda g: g.from_noise(torch.zeros(1, 1, 8, 8), 10), "labels must be below 10, .*"),
    "another shape": (lambda g: g.from_noise(torch.zeros(1, 3, 8, 8), 0), r"noise must have the shape .*, not .*"),
    "no images": (lambda g: g.sample(0, 0), "num must be at least 1 and .*, not 0"),
    "a negative seed": (lambda g: g.sample(1, 0, seed=-1), "seed must be between 0 and .*, not -1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_refused_in_one_line(file: Path, name: str) -> None:
    ask, reason = REFUSED[name]
    with pytest.raises(gfgw_prod.UserError, match=f"^{reason}$"):
        ask(gfgw_prod.load_generator(file))


def test_reasons_are_those_of_the_command(file: Path, classless: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, classes in ((file, "12"), (classless, "1")):
        assert cli.main(["sample", str(place), "--classes", classes, "--out", "nowhere"]) == 2
        with pytest.raises(gfgw_prod.UserError) as refused:
            gfgw_prod.load_generator(place).sample(1, int(classes))
        assert capsys.readouterr().err == f"gfgw: --classes{str(refused.value).removeprefix('labels')}\n"


def test_sampling_leaves_torch_as_it_was(file: Path) -> None:
    before = state()
    gfgw_prod.load_generator(file).sample(3, 0)
    assert state() == before


def test_evaluation_has_the_figures_of_the_command_and_leaves_the_process_as_it_was(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(file), "--num", "20", "--metrics", "fd", "--json"]) == 0
    printed = capsys.readouterr().out
    torch.use_deterministic_algorithms(False)
    before = state()
    figures = gfgw_prod.evaluate(file, num=20, metrics=["fd"])
    assert state() == before
    assert f'"fd": {figures["fd"]}' in printed
    with pytest.raises(gfgw_prod.UserError, match=r"^metrics should be among fd, .*, not 'fdd'$"):
        gfgw_prod.evaluate(file, metrics=["fdd"])  # type: ignore[list-item]
    with pytest.raises(gfgw_prod.UserError, match=r"^num must be at least 10 "):
        gfgw_prod.evaluate(file, num=3)


def test_everything_is_restored_after_an_error() -> None:
    torch.use_deterministic_algorithms(False)
    before = state()

    def fail() -> None:
        set_arithmetic(CPU, 2)
        ignore_stop_signals()
        threading.excepthook = print  # type: ignore[assignment]
        os.environ[CUBLAS] = ":4096:8"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), process_restored():
        fail()
    assert state() == before


def test_last_of_several_users_restores_the_arithmetic() -> None:
    torch.use_deterministic_algorithms(False)
    with arithmetic_restored():
        set_arithmetic(CPU, 1)
        with arithmetic_restored():
            set_arithmetic(CPU, 1)
        assert torch.are_deterministic_algorithms_enabled()  # a run that trains in another thread keeps its settings
    assert not torch.are_deterministic_algorithms_enabled()


def test_second_run_in_a_process_is_refused_in_one_line(tmp_path: Path) -> None:
    config = gfgw_prod.load_config("digits", run={"dir": tmp_path})
    with process_restored(), pytest.raises(gfgw_prod.UserError, match=r"^another thread of this process trains"):
        gfgw_prod.train(config)


def test_config_of_a_preset_takes_changes() -> None:
    config = gfgw_prod.load_config("digits", train={"total_kimg": 1})
    assert (config.train.total_kimg, config.train.batch_size) == (1, 256)
    with pytest.raises(gfgw_prod.UserError, match=r"^unknown setting train.totalkimg; did you mean train.total_kimg"):
        gfgw_prod.load_config("digits", train={"totalkimg": 1})
