"""``train --dry-run``: its estimates equal the memory of a real pass and of tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gfgw_prod.commands.dry_run import estimate, saved_bytes
from gfgw_prod.generator import build_generator
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.networks import GeneratorSettings
from gfgw_prod.settings.reading import resolve
from gfgw_prod.training.precision import Precision
from tests import image_files

SMALL = GeneratorSettings(model_channels=16, channel_mult=(1, 2), num_blocks=1, attention_resolutions=(8,))
SHAPE = (3, 16, 16)
CELL = 4


def really_saved(precision: str) -> int:
    """Bytes that a real pass saves for its backward pass, without the weights."""
    generator = build_generator(SMALL, SHAPE, 10, seed=0)
    own = {each.untyped_storage().data_ptr() for each in generator.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, Precision(precision, torch.device("cpu")).autocast():
        images = generator(torch.zeros(CELL, *SHAPE), torch.ones(CELL), torch.zeros(CELL, dtype=torch.long))
    del images
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_those_of_a_real_pass(precision: str) -> None:
    with torch.device("meta"):
        generator = build_generator(SMALL, SHAPE, 10, seed=0)
    saved, _ = saved_bytes(generator, [], CELL, SHAPE, precision)
    assert saved == pytest.approx(really_saved(precision), rel=0.01)


def report(capsys: pytest.CaptureFixture[str], ranks: int = 1, **sections: dict[str, Any]) -> dict[str, Any]:
    settings = {"generator": SMALL.model_dump(), "features": {"extractor": "pixels"}, "train": {"cell_size": 32}}
    estimate(resolve(settings, sections), ranks=ranks, as_json=True)
    return dict(json.loads(capsys.readouterr().out))


def memory(capsys: pytest.CaptureFixture[str], ranks: int = 1, **sections: dict[str, Any]) -> dict[str, int]:
    return dict(report(capsys, ranks, **sections)["memory_bytes_per_rank"])


def test_half_precision_takes_less(capsys: pytest.CaptureFixture[str]) -> None:
    half, full = (memory(capsys, train={"precision": kind})["activations"] for kind in ("bf16", "fp32"))
    assert 0.45 < half / full < 0.8


def test_data_are_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys)
    assert (found["rows"], found["image_shape"], found["classes"]) == (1797, [1, 8, 8], 10)
    estimate(resolve({"train": {"total_kimg": 17.97, "batch_size": 32}}), ranks=1, as_json=False)
    assert capsys.readouterr().out.startswith("data              1,797 images of 1 x 8 x 8, 10 classes; 10.0 epochs\n")
    images = np.zeros((12, 3, 16, 16), dtype=np.uint8)
    image_files.write_class_folders(tmp_path, images, [row % 2 for row in range(12)])
    (tmp_path / "beside.png").write_bytes(image_files.png(images[0]))
    estimate(resolve({"data": {"source": "folder", "path": tmp_path}}), ranks=1, as_json=False)
    printed = capsys.readouterr()
    assert "12 images of 3 x 16 x 16, 2 classes" in printed.out
    assert "1 of 13 images cannot be used, such as beside.png lies beside the class folders" in printed.err


def test_tables_are_counted_as_they_are_held(capsys: pytest.CaptureFixture[str]) -> None:
    alone = memory(capsys)
    assert alone["table"] == 1797 * (64 + 8)  # images and class ids
    assert alone["bank"] == 2048 * (64 * 4 + 8)  # features, and when each was last a target; in blocks of 512
    assert memory(capsys, ranks=2)["bank"] == alone["bank"] / 2
    assert memory(capsys, transport={"dual": "persistent"})["bank"] == 2048 * (64 * 4 + 8 + 4)
    full = memory(capsys, ranks=4, transport={"scope": "full"})
    assert full["coupling"] == 2 * 256 * 512 * 4  # a rank's own columns


# State and bytes sent, in units of the parameters, of eight cells.
WAYS = [
    (1, {"strategy": "ddp"}, 5 + 3, 0),
    (1, {"strategy": "fsdp", "shard_ranks": 2}, 5 + 3, 0),
    (2, {"strategy": "ddp"}, 5 + 1 + 2, 2 / 2),  # a rank's four cells: a pair and a single one wait for the fourth
    (2, {"strategy": "fsdp"}, 5 / 2 + 2, 1 / 2 + 3 * 4 / 2),  # weights are gathered three times in four turns
    (2, {"strategy": "fsdp", "reduction": "fast"}, 5 / 2 + 1, 1 / 2 + 3 * 4 / 2),
    (2, {"strategy": "fsdp", "shard_ranks": 1}, 5 + 2, 2 / 2),  # as much as ddp
    (4, {"strategy": "fsdp", "shard_ranks": 2}, 5 / 2 + 1, 3 / 4 + 1 / 4 + 3 * 2 / 2),
    (8, {"strategy": "fsdp"}, 5 / 8, 7 / 8 + 3 * 7 / 8),
]


@pytest.mark.parametrize(("ranks", "distributed", "state", "sent"), WAYS)
def test_gradients_and_weights_are_counted_as_they_wait_and_cross(
    capsys: pytest.CaptureFixture[str], ranks: int, distributed: dict[str, Any], state: float, sent: float
) -> None:
    train, independent = {"batch_size": 256, "cell_size": 32}, {"target": "independent"}
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_generator(SMALL, (1, 8, 8), 10, seed=0).parameters())
    found = report(capsys, ranks, train=train, distributed=distributed, transport=independent)
    assert found["memory_bytes_per_rank"]["state"] == pytest.approx(4 * parameters * state, rel=1e-3)
    features = 256 * 64 * (ranks - 1) / ranks
    assert found["sent_bytes_per_rank_and_step"] == pytest.approx(4 * (parameters * sent + features), rel=1e-3)


def test_groups_that_do_not_divide_the_ranks_are_refused() -> None:
    config = resolve({"distributed": {"strategy": "fsdp", "shard_ranks": 3}, "train": {"cell_size": 32}})
    with pytest.raises(UserError, match=r"distributed\.shard_ranks 3 should divide the number of ranks, 4"):
        estimate(config, ranks=4, as_json=True)
