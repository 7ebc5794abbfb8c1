"""Packs shared by several processes: two commands that pack at once, and nodes with a copy each."""

import fcntl
import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gfgw_prod.data.decoding import list_source
from gfgw_prod.data.images import Row
from gfgw_prod.data.listing import Listing
from gfgw_prod.data.packing import LOCK, pack
from gfgw_prod.data.packs import Pack
from gfgw_prod.data.sources import load_table, open_table
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.data import DataSettings
from tests import image_files

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 3, 4, 4), dtype=np.uint8)


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    path = image_files.write_zip(tmp_path / "set.zip", IMAGES, [row % 3 for row in range(30)])
    return list_source(DataSettings(source="zip", path=path))


@dataclass
class Slow:
    """A reader that lets another command finish the pack first."""

    listing: Listing
    place: Path
    made: Pack | None = None

    def row(self, item: int) -> Row:
        self.made = self.made or pack(self.listing, self.place, shard_rows=10)
        return self.listing.reader.row(item)


def test_pack_that_another_command_finishes_meanwhile_is_kept(listing: Listing, tmp_path: Path) -> None:
    reader, lines = Slow(listing, tmp_path / "pack"), []
    found = pack(replace(listing, reader=reader), tmp_path / "pack", log=lines.append)
    assert found == reader.made
    assert lines == [f"{tmp_path / 'pack'} is packed already"]
    found.check()
    assert not (tmp_path / "pack" / LOCK).exists()


def test_lock_freed_by_a_finished_packing_is_not_taken_for_an_unfinished_pack(
    listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, locked = fcntl.flock, []
    made: list[Pack] = []

    def after_another_has_finished(file: object, how: int) -> None:
        locked.append(file)
        if len(locked) == 1:  # it removes the lock file that the first has open
            made.append(pack(listing, tmp_path / "pack", shard_rows=10))
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", after_another_has_finished)
    assert pack(listing, tmp_path / "pack") == made[0]
    assert len(locked) == 2
    assert not (tmp_path / "pack" / LOCK).exists()
    made[0].check()


@pytest.mark.parametrize("local_rank", [0, 1])
def test_every_node_checks_all_files_of_its_own_copy(listing: Listing, tmp_path: Path, local_rank: int) -> None:
    pack(listing, tmp_path / "pack", shard_rows=10)
    shutil.copytree(tmp_path / "pack", tmp_path / "copy")
    for file in ("labels.bin", "images-00000.bin"):  # the first and the second of the files
        content = bytearray((tmp_path / "copy" / file).read_bytes())
        content[0] ^= 1
        (tmp_path / "copy" / file).write_bytes(content)
    of_second_node = World(2 + local_rank, 1, torch.device("cpu"), local_rank, 2)  # a single process: no collectives
    open_table(DataSettings(source="packed", path=tmp_path / "pack"), of_second_node, print)
    with pytest.raises(UserError, match=("labels", "images-00000")[local_rank] + r"\.bin is damaged"):
        open_table(DataSettings(source="packed", path=tmp_path / "copy"), of_second_node, print)


def test_packing_says_that_a_source_has_no_labels(listing: Listing, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("a.png", image_files.png(IMAGES[0]))
    said = []
    for each in (listing, list_source(DataSettings(source="zip", path=tmp_path / "plain.zip"))):
        said.append([])
        pack(each, tmp_path / f"pack-{len(each)}", log=said[-1].append)
    assert said == [[], ["the source has no labels: all images are of class 0"]]


def test_class_ids_out_of_range_are_refused_without_verification_too(listing: Listing, tmp_path: Path) -> None:
    pack(listing, tmp_path / "pack")
    path = tmp_path / "pack" / "labels.bin"
    for label in (-1, 3):
        labels = np.fromfile(path, dtype="<i8")
        labels[7] = label
        labels.tofile(path)
        with pytest.raises(UserError, match=r"labels\.bin holds class ids out of the range 0 to 2; pack"):
            load_table(DataSettings(source="packed", path=tmp_path / "pack", verify=False))
