"""EDM's network files are read without executing the source code in them."""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from gfgw_prod.checkpoint.run_settings import resumable
from gfgw_prod.generator import build_generator, start_generator
from gfgw_prod.generator.edm_weights import load_edm, read_edm
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.resilience.starts import StartCounter
from gfgw_prod.settings.networks import GeneratorSettings
from gfgw_prod.telemetry.startup import Startup
from gfgw_prod.training.resuming import resume
from gfgw_prod.training.run import Run

from ..checkpoints import ALONE

SMALL = {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (8,)}


class EasyDict(dict[str, Any]):
    """Stand-in for the published library's class of that name."""


def _reconstruct_persistent_obj(meta: EasyDict) -> object:
    exec(meta["module_src"], {})
    return meta


class Persistent:
    """Pickles as the published library's objects do, with source code."""

    def __init__(self, state: dict[str, Any], source: str):
        self.meta = EasyDict(type="class", version=6, module_src=source, class_name="Net", state=state)

    def __reduce__(self) -> Any:
        return _reconstruct_persistent_obj, (self.meta,)


@pytest.fixture(autouse=True)
def published_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the stand-ins importable under the published library's module names."""
    for module, thing in (("dnnlib.util", EasyDict), ("torch_utils.persistence", _reconstruct_persistent_obj)):
        monkeypatch.setitem(sys.modules, module.partition(".")[0], ModuleType(module.partition(".")[0]))
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
        setattr(sys.modules[module], thing.__name__, thing)
        monkeypatch.setattr(thing, "__module__", module)


def as_published(module: nn.Module, source: str) -> Any:
    state = dict(vars(module))
    state["_modules"] = OrderedDict((name, as_published(each, source)) for name, each in module.named_children())
    if isinstance(module, nn.ModuleDict):
        copy = nn.ModuleDict()
        copy._modules = state["_modules"]
        return copy
    return Persistent(state, source)


def write(path: Path, network: nn.Module, source: str = "", **more: Any) -> Path:
    outer = Persistent(
        {"_parameters": {}, "_buffers": {}, "_modules": {"model": as_published(network, source)}}, source
    )
    path.write_bytes(pickle.dumps({"ema": outer, "dataset_kwargs": EasyDict(path="x"), **more}))
    return path


def network(seed: int, *, conditional: bool = False) -> nn.Module:
    settings = GeneratorSettings(conditional=conditional, **SMALL)
    return build_generator(settings, (3, 16, 16), 10, seed).network


def test_weights_are_loaded_and_no_source_is_executed(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    published = network(1)
    path = write(tmp_path / "net.pkl", published, f"open({str(proof)!r}, 'w').close()")
    lines: list[str] = []
    settings = GeneratorSettings(pretrained=path, **SMALL)
    started = start_generator(settings, (3, 16, 16), 10, 2, lines.append)
    for name, parameter in published.named_parameters():
        assert torch.equal(started.network.get_parameter(name), parameter), name
    count = len(list(published.parameters()))
    assert lines == [f"generator: {count} of {count} tensors from {path}"]
    assert not proof.exists()
    pickle.loads(path.read_bytes())  # as the library does
    assert proof.exists()


def test_labels_have_no_effect_at_first_in_a_conditional_network_from_an_unconditional_file(tmp_path: Path) -> None:
    published = network(1).eval()
    mine = network(2, conditional=True).eval()
    assert "; zero: map_label.weight, map_label.bias" in load_edm(mine, write(tmp_path / "net.pkl", published))
    images, levels = torch.randn(2, 3, 16, 16), torch.tensor([-1.0, 1.0])
    labels = torch.eye(10)[[3, 7]]
    assert torch.equal(mine(images, levels, labels), published(images, levels, None))
    mine(images, levels, labels).sum().backward()
    assert (mine.map_label.weight.grad[:, [3, 7]] != 0).any(dim=0).all()  # but they are learned


def test_conditional_file_starts_an_unconditional_network(tmp_path: Path) -> None:
    path = write(tmp_path / "net.pkl", network(1, conditional=True))
    assert "; not used: map_label.bias, map_label.weight" in load_edm(network(2), path)


def test_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "net.pkl", network(1))
    settings = GeneratorSettings(**{**SMALL, "channel_mult": (1, 2, 2)})
    other = build_generator(settings, (3, 16, 16), 10, 0).network
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(UserError, match=r"is of another network: \d+ of \d+ tensors differ"):
        load_edm(other, path)
    assert all(map(torch.equal, before, other.parameters()))


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps({"ema": 1}), pickle.dumps([1])])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"generator\.pretrained"):
        read_edm(path)
    with pytest.raises(UserError, match="no file"):
        read_edm(tmp_path / "nothing")


def test_file_that_refers_to_other_functions_is_refused_by_name(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return (eval, (f"open({str(tmp_path / 'proof')!r}, 'w')",))

    path = write(tmp_path / "net.pkl", network(1), extra=Malicious())
    with pytest.raises(UserError, match=r"refers to builtins\.eval.* nothing was run"):
        read_edm(path)
    assert not (tmp_path / "proof").exists()


def test_tensor_bytes_with_code_are_refused(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return (eval, (f"open({str(tmp_path / 'proof')!r}, 'w')",))

    class Storage:
        def __reduce__(self) -> Any:
            return (torch.storage._load_from_bytes, (self.content,))

    inner = Storage()
    torch.save(Malicious(), tmp_path / "inner.pt", _use_new_zipfile_serialization=False)
    inner.content = (tmp_path / "inner.pt").read_bytes()
    path = write(tmp_path / "net.pkl", network(1), extra=inner)
    with pytest.raises(UserError, match=r"is refused"):
        read_edm(path)
    assert not (tmp_path / "proof").exists()


def test_resumed_run_does_not_need_the_file(tmp_path: Path) -> None:
    settings = GeneratorSettings(**SMALL)
    path = write(tmp_path / "net.pkl", build_generator(settings, (1, 8, 8), 10, 1).network)

    def run_of(steps: int) -> Run:
        config = resumable(
            {
                "run": {"dir": str(tmp_path / "run")},
                "generator": {**SMALL, "pretrained": str(path)},
                "features": {"extractor": "pixels"},
                "train": {"batch_size": 8, "cell_size": 8, "total_kimg": steps * 0.008},
                "telemetry": {"samples_every_kimg": 1000, "sample_grid": 1, "progress": "off"},
            }
        )
        return Run(config, ALONE, StartCounter(config.run.dir, config.resilience.max_no_progress, ALONE), Startup())

    first = run_of(1)
    resume(first)
    assert first.loop()
    first.close()
    path.unlink()
    again = run_of(2)
    resume(again)
    assert again.step == 1
    assert again.loop()
    again.close()
