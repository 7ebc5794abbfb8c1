"""The exported generator: one file that rebuilds it, one graph that samples like it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from gfgw_prod.distributed.cells import random_stream
from gfgw_prod.generator import build_generator
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.sampling.onnx_graph import to_onnx
from gfgw_prod.sampling.pictures import draw_samples
from gfgw_prod.sampling.trained import TrainedGenerator, read_file, to_safetensors
from gfgw_prod.settings.networks import GeneratorSettings
from gfgw_prod.settings.reading import resolve
from gfgw_prod.weights.digest import weights_digest

DIGITS = GeneratorSettings(
    model_channels=16, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(), conditional=True, dropout=0.5
)
ATTENTION = GeneratorSettings(model_channels=8, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(16,))
SHAPES = {"digits": (1, 8, 8), "attention": (3, 32, 32)}
SETTINGS = {"digits": DIGITS, "attention": ATTENTION}
CLASSES = 10


def trained_with(settings: GeneratorSettings, shape: tuple[int, int, int]) -> TrainedGenerator:
    """A generator whose every weight counts, and whose images leave [-1, 1]: a fresh one's output is near zero."""
    drawn = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(tensor.shape, generator=drawn) / tensor[0].numel() ** 0.5
        if tensor.dim() > 1
        else tensor + 0.1 * torch.randn(tensor.shape, generator=drawn)
        for name, tensor in build_generator(settings, shape, CLASSES, seed=0).state_dict().items()
    }
    tensors[f"network.dec.{shape[1]}x{shape[2]}_aux_conv.weight"] *= 4
    config = resolve({"generator": settings.model_dump()}).model_dump(mode="json")
    return TrainedGenerator(
        tensors, config, shape, CLASSES, step=7, images=896, weights="ema", weights_sha256="ab" * 32
    )


@pytest.fixture(scope="module")
def digits() -> TrainedGenerator:
    return trained_with(DIGITS, SHAPES["digits"])


def test_file_rebuilds_the_generator_bit_for_bit(digits: TrainedGenerator, tmp_path: Path) -> None:
    (tmp_path / "g.safetensors").write_bytes(to_safetensors(digits))
    rebuilt = read_file(tmp_path / "g.safetensors").build()
    original = build_generator(DIGITS, (1, 8, 8), CLASSES, seed=1)
    assert not torch.equal(rebuilt.network.map_layer0.weight, original.network.map_layer0.weight)
    original.load_state_dict(digits.tensors)
    assert weights_digest(rebuilt.state_dict()) == weights_digest(original.state_dict())
    noise, labels = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    with torch.no_grad():  # without dropout as it is
        assert torch.equal(rebuilt.sample(noise, labels), original.eval().sample(noise, labels))
    assert read_file(tmp_path / "g.safetensors").metadata == digits.metadata


def test_header_has_the_metadata(digits: TrainedGenerator, tmp_path: Path) -> None:
    (tmp_path / "g.safetensors").write_bytes(to_safetensors(digits))
    with safe_open(tmp_path / "g.safetensors", framework="pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == digits.tensors.keys()
    assert json.loads(metadata["config"])["generator"]["channel_mult"] == [1, 2]
    assert json.loads(metadata["image_shape"]) == [1, 8, 8]
    assert {name: metadata[name] for name in ("num_classes", "step", "images", "weights", "weights_sha256")} == {
        "num_classes": "10",
        "step": "7",
        "images": "896",
        "weights": "ema",
        "weights_sha256": "ab" * 32,
    }


def test_same_generator_gives_the_same_bytes(digits: TrainedGenerator) -> None:
    assert len({save(digits.tensors, digits.metadata) for _ in range(8)}) > 1  # what the library writes does not
    assert len({to_safetensors(digits) for _ in range(8)}) == 1
    assert to_onnx(digits)[0] == to_onnx(digits)[0]


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[:-100],
    "first byte of the header's length": lambda content: flipped(content, 0),
    "header larger than the file": lambda content: struct.pack("<Q", 2**40) + content[8:],
    "a bit of the last tensor": lambda content: flipped(content, -2),
    "weights of something else": lambda content: save({"weight": torch.zeros(3)}),
    "settings that are none": lambda content: content.replace(b'\\"num_blocks\\": 1', b'\\"num_blocks\\": 0'),
    "settings without a generator": lambda content: content.replace(b'\\"generator\\"', b'\\"generated\\"'),
    "an image shape of two sizes": lambda content: content.replace(b'"[1, 8, 8]"', b'"[8, 8]   "'),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_or_foreign_file_is_refused_in_one_line(digits: TrainedGenerator, tmp_path: Path, name: str) -> None:
    content = to_safetensors(digits)
    damaged = DAMAGE[name](content)
    assert damaged != content
    path = tmp_path / "g.safetensors"
    path.write_bytes(damaged)
    with pytest.raises(UserError) as refused:
        read_file(path).build()
    assert str(path) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_weights_of_another_architecture_are_refused(digits: TrainedGenerator) -> None:
    wider = digits.config | {"generator": digits.config["generator"] | {"model_channels": 32}}
    with pytest.raises(UserError, match="do not fit"):
        replace(digits, config=wider).build()


@pytest.mark.parametrize("name", SETTINGS)
def test_graph_samples_like_torch_at_any_batch_size(name: str) -> None:
    settings, shape = SETTINGS[name], SHAPES[name]
    trained = trained_with(settings, shape)
    content, difference = to_onnx(trained)
    assert 0 < difference < 1e-4
    onnx.checker.check_model(content, full_check=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    inputs = {each.name: (each.type, each.shape) for each in session.get_inputs()}
    expected = {"noise": ("tensor(float)", ["batch", *shape])}
    if settings.conditional:
        expected["labels"] = ("tensor(int64)", ["batch"])
    assert inputs == expected
    assert session.get_outputs()[0].shape == ["batch", *shape]
    assert session.get_modelmeta().custom_metadata_map == trained.metadata
    for count in (1, 2, 5, 12):
        images, labels = draw_samples(
            trained.build(), shape, range(CLASSES), count=count, seed=3, stream="sample", device=torch.device("cpu")
        )
        noise = torch.stack([torch.randn(shape, generator=random_stream(3, "sample", i)) for i in range(count)])
        got = run(session, noise, labels)
        torch.testing.assert_close(got, images, atol=1e-4, rtol=0)
    assert images.std() > 0.1
    assert got.abs().max() == 1  # unclamped they would reach further
    if settings.conditional:
        assert not torch.allclose(run(session, noise, labels.flip(0)), images, atol=1e-2)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_graph_refuses_a_class_that_does_not_exist(digits: TrainedGenerator, label: int) -> None:
    session = onnxruntime.InferenceSession(to_onnx(digits)[0], providers=["CPUExecutionProvider"])
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="out of data bounds"):
        run(session, torch.zeros(2, 1, 8, 8), torch.tensor([0, label]))


def run(session: onnxruntime.InferenceSession, noise: Tensor, labels: Tensor) -> Tensor:
    given = {"noise": noise.numpy(), "labels": labels.numpy()}
    return torch.from_numpy(session.run(None, {each.name: given[each.name] for each in session.get_inputs()})[0])


def test_graph_that_does_not_sample_like_torch_is_not_kept(digits: TrainedGenerator) -> None:
    name = "network.dec.8x8_aux_conv.bias"
    broken = digits.tensors | {name: torch.full_like(digits.tensors[name], float("nan"))}
    with pytest.raises(UserError, match="differ from torch's"):
        to_onnx(replace(digits, tensors=broken))
