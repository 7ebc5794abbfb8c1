"""Packs hold what was put in, for any number of processes and shards; damage is noticed."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gfgw_prod.data.decoding import list_source
from gfgw_prod.data.packing import pack
from gfgw_prod.data.packs import Pack
from gfgw_prod.data.sources import Table, load_table
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.data import DataSettings
from tests import image_files


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (700, 3, 4, 4), dtype=np.uint8)


LABELS = [row % 7 for row in range(700)]
INVALID = (0, 5, 255, 256, 511, 699)


@pytest.fixture(scope="module")
def archive(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_files.write_zip(tmp_path_factory.mktemp("source") / "set.zip", images, LABELS)


@pytest.fixture(scope="module")
def spoilt(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six invalid images, the first and the last among them."""
    place = image_files.write_folder(tmp_path_factory.mktemp("source") / "spoilt", images, LABELS)
    for row in INVALID:
        (place / image_files.name_of(row)).write_bytes(b"not an image")
    return place


def packed(source: Path, directory: Path, **options: object) -> Pack:
    kind = "zip" if source.suffix == ".zip" else "folder"
    return pack(list_source(DataSettings(source=kind, path=source)), directory, **options)


def table_of(place: Path) -> Table:
    return load_table(DataSettings(source="packed", path=place))


@pytest.mark.parametrize(("workers", "shard_rows"), [(0, None), (0, 9), (0, 256), (2, 100)])
def test_packed_table_is_the_decoded_one(
    archive: Path, images: np.ndarray, tmp_path: Path, workers: int, shard_rows: int | None
) -> None:
    made = packed(archive, tmp_path / "pack", workers=workers, shard_rows=shard_rows)
    table, decoded = table_of(tmp_path / "pack"), load_table(DataSettings(source="zip", path=archive))
    ids = torch.tensor([699, 0, 3, 3, 255, 256])
    assert torch.equal(table.rows(ids), decoded.rows(ids))
    assert torch.equal(table.rows(torch.arange(700)), decoded.rows(torch.arange(700)))
    assert torch.equal(table.labels, decoded.labels)
    assert table.image_shape == decoded.image_shape
    assert made.fingerprint == table.fingerprint() == decoded.fingerprint()
    made.check()
    assert len(made.shards) == -(-700 // (shard_rows or 700))


@pytest.mark.parametrize(("workers", "shard_rows"), [(0, 100), (2, None)])
def test_skipped_images_are_listed_and_change_the_fingerprint(
    spoilt: Path, images: np.ndarray, tmp_path: Path, workers: int, shard_rows: int | None
) -> None:
    lines: list[str] = []
    made = packed(spoilt, tmp_path / "pack", log=lines.append, on_error="skip", workers=workers, shard_rows=shard_rows)
    kept = torch.from_numpy(np.delete(images, INVALID, axis=0))
    labels = torch.tensor([label for row, label in enumerate(LABELS) if row not in INVALID])
    assert made.fingerprint == Table(kept, labels, 255, 7).fingerprint()
    assert [name for name, _ in made.skipped] == [image_files.name_of(row) for row in INVALID]
    assert all("is not an image" in why for _, why in made.skipped)
    assert lines == [f"skipped {name}: {why}" for name, why in made.skipped]
    assert torch.equal(
        table_of(tmp_path / "pack").rows(torch.arange(694)), Table(kept, labels, 255, 7).rows(torch.arange(694))
    )


def test_first_invalid_image_ends_a_packing_with_on_error_fail(spoilt: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"00000/img00000000\.png is not an image .*data\.on_error skip"):
        packed(spoilt, tmp_path / "pack")
    with pytest.raises(UserError, match=r"pack\.json"):
        table_of(tmp_path / "pack")


def test_pack_with_skipped_images_is_refused_with_on_error_fail(spoilt: Path, tmp_path: Path) -> None:
    packed(spoilt, tmp_path / "pack", on_error="skip")
    with pytest.raises(UserError, match=r"was packed without 00000/img00000000\.png .*data\.on_error skip"):
        packed(spoilt, tmp_path / "pack")


class Killed(BaseException):
    """Stands for a signal that nothing can catch."""


def kill_after(items: int) -> Callable[[int], None]:
    """An ``advance`` that kills the packing once more than so many items are done."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if done > items:
            raise Killed

    return advance


@pytest.mark.parametrize("after", [0, 255, 400, 699])
def test_packing_that_was_killed_begins_anew_and_makes_the_same_files(spoilt: Path, tmp_path: Path, after: int) -> None:
    options = {"on_error": "skip", "shard_rows": 150}
    packed(spoilt, tmp_path / "whole", **options)
    with pytest.raises(Killed):
        packed(spoilt, tmp_path / "pack", advance=kill_after(after), **options)
    (tmp_path / "pack" / ".pack.json.0.partial").write_bytes(b'{"rows": ')  # killed while it was written
    with pytest.raises(UserError, match=r"pack\.json"):
        table_of(tmp_path / "pack")
    packed(spoilt, tmp_path / "pack", **options)
    assert contents(tmp_path / "pack") == contents(tmp_path / "whole")


def contents(place: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in place.iterdir()}


def test_unfinished_pack_leaves_nothing_in_that_of_another_source(
    archive: Path, images: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        packed(archive, tmp_path / "pack", advance=kill_after(400), shard_rows=100)
    other = image_files.write_zip(tmp_path / "set.zip", images[:50], LABELS[:50])
    assert packed(other, tmp_path / "pack").rows == 50
    assert sorted(contents(tmp_path / "pack")) == ["images-00000.bin", "labels.bin", "pack.json"]


@pytest.mark.parametrize(("name", "value"), [("grey", True), ("peak", 200), ("image_size", 4), ("resize", "box")])
def test_pack_made_by_other_rules_is_refused(archive: Path, tmp_path: Path, name: str, value: object) -> None:
    size = {"image_size": 8} if name in ("image_size", "resize") else {}
    made = DataSettings(source="zip", path=archive, **size)
    pack(list_source(made), tmp_path / "pack")
    table_of(tmp_path / "pack")
    settings = DataSettings(source="packed", path=tmp_path / "pack", **{**size, name: value})
    with pytest.raises(UserError, match=rf"data\.path .*/pack .*data\.{name}"):
        load_table(settings)


def test_rules_of_a_pack_may_be_set_again(archive: Path, tmp_path: Path) -> None:
    rules = {"image_size": 8, "resize": "box", "grey": True}
    pack(list_source(DataSettings(source="zip", path=archive, **rules)), tmp_path / "pack")
    assert load_table(DataSettings(source="packed", path=tmp_path / "pack", **rules)).image_shape == (1, 8, 8)


def test_finished_pack_is_not_packed_again_nor_by_another_source(archive: Path, spoilt: Path, tmp_path: Path) -> None:
    first = packed(archive, tmp_path / "pack")
    lines: list[str] = []
    assert packed(archive, tmp_path / "pack", log=lines.append) == first
    assert lines == [f"{tmp_path / 'pack'} is packed already"]
    with pytest.raises(UserError, match="another source"):
        packed(spoilt, tmp_path / "pack", on_error="skip")


def test_directories_with_other_files_are_left_alone(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="holds file, and no unfinished pack of this version; empty it, or name a new"):
        packed(archive, tmp_path)
    with pytest.raises(UserError, match="not a directory"):
        packed(archive, tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        packed(archive, Path("/proc/pack"))
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_two_processes_do_not_pack_into_one_directory(archive: Path, tmp_path: Path) -> None:
    calls = []

    def second(more: int) -> None:
        with pytest.raises(UserError, match="another process"):
            packed(archive, tmp_path / "pack")
        calls.append(more)

    packed(archive, tmp_path / "pack", advance=second)
    assert sum(calls) == 700


@pytest.mark.parametrize("file", ["images-00001.bin", "labels.bin", "pack.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "missing"])
def test_any_damage_to_a_pack_is_noticed(archive: Path, tmp_path: Path, file: str, damage: str) -> None:
    made = packed(archive, tmp_path / "pack", shard_rows=400)
    for rank in range(3):
        made.check(rank, 3)
    path = tmp_path / "pack" / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        if damage == "bit":
            content[len(content) // 2] ^= 1
        path.write_bytes(content[: None if damage == "bit" else -1])

    def opened() -> None:
        table = table_of(tmp_path / "pack")
        for rank in range(3):
            table.pack.check(rank, 3)

    with pytest.raises(UserError, match=rf"{tmp_path / 'pack'}.*{file}") as caught:
        opened()
    assert "\n" not in str(caught.value)


def test_damaged_index_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"[]", b"{}", b"\xff", b'{"format": 1}', b"[" * 100_000, b'{"index_sha256": null}'):
        (tmp_path / "pack.json").write_bytes(content)
        with pytest.raises(UserError, match=r"pack\.json"):
            table_of(tmp_path)


def test_pack_of_another_size_is_refused(archive: Path, tmp_path: Path) -> None:
    packed(archive, tmp_path / "pack")
    with pytest.raises(UserError, match=r"4 x 4 pixels, not data\.image_size 8"):
        load_table(DataSettings(source="packed", path=tmp_path / "pack", image_size=8))


def test_full_file_system_is_reported_in_one_line_and_the_same_command_packs_then(
    archive: Path, tmp_path: Path
) -> None:
    packed(archive, tmp_path / "whole", shard_rows=100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))  # bytes per file; a shard has 4,800
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\); make room"):
            packed(archive, tmp_path / "pack", shard_rows=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    packed(archive, tmp_path / "pack", shard_rows=100)
    assert contents(tmp_path / "pack") == contents(tmp_path / "whole")


def test_pack_can_be_moved(archive: Path, tmp_path: Path) -> None:
    packed(archive, tmp_path / "pack")
    shutil.move(tmp_path / "pack", tmp_path / "elsewhere")
    assert len(table_of(tmp_path / "elsewhere")) == 700
