"""Commands that do not train: dry run, doctor, inspect, sample, help."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gfgw_prod.checkpoint.finding import find_checkpoints
from gfgw_prod.settings.reading import setting_names
from tests import image_files

from . import runs


def gfgw(*arguments: str) -> str:
    """Output of a process that succeeds."""
    outcome = runs.execute([*runs.GFGW, *arguments])
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


def pictures(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_dry_run_counts_what_the_run_then_holds(reference: Path, tmp_path: Path) -> None:
    command = runs.training(tmp_path / "run", "--dry-run", "--json", "--ranks", "4")[len(runs.GFGW) :]
    plan = json.loads(runs.printed_by(*command))
    [*_, last] = find_checkpoints(reference)
    assert plan["parameters"] == sum(tensor.numel() for tensor in last.read_tensors("generator.").values())
    assert (plan["steps"], plan["images"]) == (last.step, last.images)
    assert (plan["ranks"], plan["cells"], plan["cells_per_rank"], plan["idle_share"]) == (4, 6, 2, 0.25)
    memory = plan["memory_bytes_per_rank"]
    assert memory.pop("frozen") == 0  # pixels need no network
    assert all(size > 0 for size in memory.values())
    assert plan["sent_bytes_per_rank_and_step"] > 0
    assert not (tmp_path / "run").exists()


def test_dry_run_of_cifar10_needs_neither_data_nor_weights() -> None:
    plan = json.loads(
        runs.printed_by("train", "--config", str(runs.ROOT / "configs" / "cifar10.yaml"), "--dry-run", "--json")
    )
    assert plan["parameters"] == 55_734_147
    # 14.7 million parameters of VGG-16's convolutions, 4 bytes each
    assert plan["memory_bytes_per_rank"]["frozen"] == pytest.approx(4 * 14.716e6, rel=1e-3)


def test_dry_run_of_imagenet_takes_the_number_of_classes_from_the_pack(tmp_path: Path) -> None:
    images = np.zeros((3, 3, 80, 70), dtype=np.uint8)
    archive = image_files.write_zip(tmp_path / "few.zip", images, [0, 999, 5])
    config = ("--config", str(runs.ROOT / "configs" / "imagenet64.yaml"))
    source = ("--data.source", "zip", "--data.path", str(archive))
    made = json.loads(runs.printed_by("pack", str(tmp_path / "pack"), *config, *source, "--workers", "0", "--json"))
    assert (made["rows"], made["image_shape"], made["num_classes"]) == (3, [3, 64, 64], 1000)
    plan = json.loads(runs.printed_by("train", *config, "--data.path", str(tmp_path / "pack"), "--dry-run", "--json"))
    assert plan["parameters"] == 270_320_451


def test_doctor_finds_that_this_machine_can_train() -> None:
    findings = {finding["check"]: finding for finding in json.loads(gfgw("doctor", "--json"))}
    assert {"python", "torch", "cores", "loopback", "disk", "temporary"} <= findings.keys()
    assert all(finding["state"] in {"ok", "note"} and finding["detail"] for finding in findings.values())


def test_inspect_lists_every_checkpoint_in_words_and_in_json(reference: Path) -> None:
    found = json.loads(gfgw("inspect", str(reference), "--json"))["checkpoints"]
    assert [each["step"] for each in found] == [2, 4, 6]
    assert [each["images"] for each in found] == [2 * runs.BATCH, 4 * runs.BATCH, 6 * runs.BATCH]
    assert all(each["verified"] is True and len(each["weights_sha256"]) == 64 for each in found)
    one = reference / "checkpoints" / found[1]["name"]
    words = runs.printed_by("inspect", str(one), "--verify").splitlines()
    assert len(words) == 2
    assert found[1]["name"] in words[1]
    assert words[1].endswith(found[1]["weights_sha256"])


def test_inspect_tells_how_a_run_without_checkpoints_stands(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert runs.printed_by("inspect", str(tmp_path)) == "the run: new; no checkpoint yet\n"
    assert runs.execute([*runs.GFGW, "inspect", str(tmp_path), "--verify"]).code == 2


def test_inspect_names_damage_and_fails_if_asked_to_verify(copy_of_reference: Path) -> None:
    shard = runs.newest_shard(copy_of_reference)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    strict = runs.execute([*runs.GFGW, "inspect", str(copy_of_reference), "--verify", "--json"])
    assert strict.code == 2
    *others, last = json.loads(strict.stdout)["checkpoints"]
    assert (
        json.loads(runs.printed_by("inspect", str(copy_of_reference), "--json"))["checkpoints"][-1]["verified"] is False
    )
    assert all(each["verified"] for each in others)
    assert (last["verified"], last["weights_sha256"]) == (False, None)
    assert shard.name in last["problem"]


def test_samples_depend_on_the_seed_and_the_weights_alone(reference: Path, tmp_path: Path) -> None:
    variants = {"once": [], "again": [], "seed": ["--seed", "1"], "raw": ["--raw"]}
    for name, options in variants.items():
        runs.printed_by("sample", str(reference), "--num", "3", "--out", str(tmp_path / name), *options)
    once, again, seed, raw = (pictures(tmp_path / name) for name in variants)
    assert once == again
    assert len({each.pop("dataset.json") for each in (once, seed, raw)}) == 1  # their classes
    assert sorted(once) == ["000000.png", "000001.png", "000002.png"]
    assert len(set(once.values())) == 3
    assert not set(once.values()) & set(seed.values())
    assert not set(once.values()) & set(raw.values())


def test_grid_is_one_picture_of_all_samples(reference: Path, tmp_path: Path) -> None:
    printed = runs.printed_by("sample", str(reference), "--num", "6", "--out", str(tmp_path), "--grid")
    assert printed.strip() == str(tmp_path / "grid.png")
    assert list(pictures(tmp_path)) == ["grid.png"]
    with Image.open(tmp_path / "grid.png") as grid:  # a column for each of the first six classes
        assert grid.width == pytest.approx(grid.height * 6, rel=0.05)


@pytest.mark.parametrize(("encoding", "name", "shown"), [("ascii", "é", "\\xe9"), ("utf-8", "\udcff", "\\udcff")])
def test_name_that_the_output_cannot_encode_is_escaped(
    reference: Path, tmp_path: Path, encoding: str, name: str, shown: str
) -> None:
    command = [*runs.GFGW, "sample", str(reference), "--num", "1", "--out", str(tmp_path / name)]
    sampled = runs.execute(command, {"PYTHONIOENCODING": encoding}, anew=True)
    assert (sampled.code, sampled.stderr) == (0, "")
    assert f"{tmp_path}/{shown}" in sampled.stdout


def test_help_documents_every_setting() -> None:
    options: dict[str, str] = {}
    for line in gfgw("train", "--help").splitlines():
        stripped = line.strip()
        if stripped.startswith("--"):
            current, _, rest = stripped.partition(" ")
            options[current] = rest
        elif options and stripped:
            options[current] += " " + stripped
    for name in setting_names():
        documented = options[f"--{name.replace('_', '-')}"]
        assert "(default: " in documented, name
        assert len(documented.partition("(default: ")[0].split()) > 1, name
    assert gfgw("--help").count("\n") > 5
    assert gfgw("--version").startswith("gfgw_prod ")
