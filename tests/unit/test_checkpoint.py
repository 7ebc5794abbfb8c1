"""Checkpoints: written whole, verified file by file, read back bit by bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from gfgw_prod.commands import find_checkpoints
from gfgw_prod.distributed.world import World
from gfgw_prod.resilience.checkpoint import (
    MANIFEST,
    Checkpoint,
    checkpoints,
    load,
    newest_good,
    prepare_directory,
    save,
    weights_digest,
)
from gfgw_prod.resilience.exit_codes import UserError


def state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "generator.weight": torch.randn(16, 8, generator=generator),
        "ema.weight": torch.randn(16, 8, generator=generator),
        "bank.rows": torch.randn(40, 3, generator=generator),
    }


@pytest.fixture
def run_dir(tmp_path: Path, alone: World) -> Path:
    """A run with checkpoints of steps 1 and 2."""
    prepare_directory(tmp_path)
    for step in (1, 2):
        save_step(tmp_path, alone, step)
    return tmp_path


def save_step(run_dir: Path, world: World, step: int, *, keep: int = 5) -> None:
    facts = {
        "config": {"seed": 1},
        "data_fingerprint": "abc",
        "frozen_weights": [],
        "packages": {},
        "arithmetic": "cpu",
        "changes": [],
        "image_shape": [1, 8, 8],
        "num_classes": 10,
    }
    save(run_dir, state(step), world, step=step, images=step * 10, facts=facts, keep=keep)


def payload(checkpoint: Checkpoint) -> Path:
    """The largest file of a checkpoint: its tensors."""
    return max(checkpoint.path.glob("*.distcp"), key=lambda path: path.stat().st_size)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_saved_tensors_come_back_bit_by_bit(run_dir: Path, alone: World) -> None:
    restored = {name: torch.zeros_like(tensor) for name, tensor in state().items()}
    first, second = checkpoints(run_dir)
    assert [(c.step, c.images, c.manifest["config"]) for c in (first, second)] == [
        (1, 10, {"seed": 1}),
        (2, 20, {"seed": 1}),
    ]
    load(second, restored, alone)
    assert all(torch.equal(restored[name], tensor) for name, tensor in state(2).items())
    assert first.problem() is None


def test_tensors_are_chosen_by_prefix(run_dir: Path) -> None:
    found = checkpoints(run_dir)[1].tensors("generator.", "ema.")
    assert found.keys() == {"generator.weight", "ema.weight"}
    assert torch.equal(found["ema.weight"], state(2)["ema.weight"])


def test_manifest_lists_every_file(run_dir: Path) -> None:
    found = checkpoints(run_dir)[0]
    assert {path.name for path in found.path.iterdir()} == {*found.manifest["files"], MANIFEST}


@pytest.mark.parametrize("name", [".metadata", "payload"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [(flip_a_byte, "SHA-256"), (truncate, "bytes"), (Path.unlink, "missing")],
    ids=["flipped", "truncated", "missing"],
)
def test_damage_to_any_file_is_found(run_dir: Path, name: str, damage: Callable[[Path], None], said: str) -> None:
    found = checkpoints(run_dir)[1]
    file = payload(found) if name == "payload" else found.path / name
    damage(file)
    problem = found.problem()
    assert problem is not None
    assert file.name in problem
    assert said in problem


@pytest.mark.parametrize(
    "edit",
    [{"files": {}}, {"format": 2}, {"config": None}, {"files": {".metadata": {"bytes": 1}}}, {"files": [1]}],
    ids=["no files", "other format", "no config", "no hash", "files is a list"],
)
def test_manifest_that_says_too_little_is_no_checkpoint(run_dir: Path, edit: dict[str, Any]) -> None:
    path = run_dir / "checkpoints" / "step-00000002" / MANIFEST
    manifest = json.loads(path.read_text()) | edit
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))
    lines: list[str] = []
    assert newest_good(run_dir, lines.append).step == 1
    assert len(lines) == 1


def test_directory_in_use_is_refused_until_it_is_free(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gfgw_prod.resilience.checkpoint.LOCK_SECONDS", 0.5)
    lock = prepare_directory(run_dir)
    with pytest.raises(UserError, match="in use"):
        prepare_directory(run_dir)
    lock.close()
    prepare_directory(run_dir).close()


def test_damaged_checkpoint_is_reported_set_aside_and_replaced(run_dir: Path, alone: World) -> None:
    lines: list[str] = []
    flip_a_byte(payload(checkpoints(run_dir)[1]))
    assert newest_good(run_dir, lines.append).step == 1
    assert len(lines) == 1
    assert "step-00000002" in lines[0]
    assert len(list((run_dir / "checkpoints").glob("damaged-*"))) == 1
    save_step(run_dir, alone, 2)
    assert newest_good(run_dir, lines.append).step == 2
    assert len(lines) == 1


@pytest.mark.parametrize("damage", [truncate, Path.unlink], ids=["truncated", "missing"])
def test_checkpoint_without_a_readable_manifest_is_reported_and_replaced(
    run_dir: Path, alone: World, damage: Callable[[Path], None]
) -> None:
    lines: list[str] = []
    damage(run_dir / "checkpoints" / "step-00000002" / MANIFEST)
    assert newest_good(run_dir, lines.append).step == 1
    assert any("step-00000002" in line for line in lines)
    save_step(run_dir, alone, 2)
    assert newest_good(run_dir, lines.append).step == 2


def test_no_good_checkpoint_is_none(run_dir: Path) -> None:
    for found in checkpoints(run_dir):
        truncate(payload(found))
    assert newest_good(run_dir, lambda line: None) is None


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_write_cut_short_is_no_checkpoint_and_is_cleared(run_dir: Path) -> None:
    pending = run_dir / "checkpoints" / ".pending-step-00000003-1-1"
    dcp.save(state(), storage_writer=dcp.FileSystemWriter(pending), no_dist=True)
    assert [found.step for found in checkpoints(run_dir)] == [1, 2]
    prepare_directory(run_dir)
    assert not pending.exists()
    assert [found.step for found in checkpoints(run_dir)] == [1, 2]


def test_saved_step_is_left_as_it_is(run_dir: Path, alone: World) -> None:
    save(run_dir, state(99), alone, step=2, images=20, facts={}, keep=5)
    assert torch.equal(checkpoints(run_dir)[1].tensors("ema.")["ema.weight"], state(2)["ema.weight"])


def test_newest_are_kept(run_dir: Path, alone: World) -> None:
    save_step(run_dir, alone, 3, keep=2)
    assert [found.step for found in checkpoints(run_dir)] == [2, 3]
    assert all(not path.name.startswith(".") for path in (run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("change", ["shape", "name"])
def test_another_architecture_is_refused_by_tensor(run_dir: Path, alone: World, change: str) -> None:
    other = {"generator.weight": torch.zeros(3, 8)} if change == "shape" else {"generator.bias": torch.zeros(8)}
    with pytest.raises(UserError, match=r"another architecture: generator\."):
        load(checkpoints(run_dir)[1], other, alone)


def test_digest_is_of_names_shapes_and_bits() -> None:
    weights = state()
    backwards = dict(reversed(list(weights.items())))
    moved = weights | {"ema.weight": weights["ema.weight"].clone()}
    moved["ema.weight"][0, 0] = torch.nextafter(moved["ema.weight"][0, 0], torch.tensor(9.0))
    others = [
        moved,
        weights | {"ema.weight": weights["ema.weight"].view(8, 16)},
        {"other" if name == "bank.rows" else name: tensor for name, tensor in weights.items()},
    ]
    assert weights_digest(backwards) == weights_digest(weights)
    assert len({weights_digest(other) for other in others} | {weights_digest(weights)}) == 4


def test_run_and_checkpoint_directories_are_both_found(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run_dir / "checkpoints" / "step-00000001"
    assert [found.step for found in find_checkpoints(run_dir)] == [1, 2]
    assert [found.step for found in find_checkpoints(one)] == [1]
    monkeypatch.chdir(one.parent)
    assert [found.step for found in find_checkpoints(Path(one.name))] == [1]
    monkeypatch.chdir(one)
    assert [found.step for found in find_checkpoints(Path())] == [1]
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_checkpoints(run_dir / "nothing")
