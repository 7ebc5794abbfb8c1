"""The bank's cache: the bits that encoding gives, for any number of ranks, and only for the same inputs."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gfgw_prod.data.sources import Table, load_table
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.features.bank_cache import BankCache
from gfgw_prod.features.extractors import PixelFeatures
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.resilience.same_run import run_facts
from gfgw_prod.settings.data import DataSettings
from gfgw_prod.settings.networks import FeatureSettings
from gfgw_prod.settings.reading import resolve


class Counted(nn.Module):
    """Pixel features that count their input images."""

    def __init__(self, table: Table):
        super().__init__()
        self.inner, self.images = PixelFeatures(table.image_shape), 0

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return self.inner(images)


@pytest.fixture(scope="module")
def digits() -> Table:
    return load_table(DataSettings())


def cache_of(table: Table, root: Path | None, lines: list[str] | None = None, **settings: object) -> BankCache | None:
    config = resolve({"features": {"cache": root, **settings}})
    facts = run_facts(config, table, [PixelFeatures(table.image_shape)], torch.device("cpu"))
    return BankCache.of(config, facts, (lines if lines is not None else []).append)


def encoded(table: Table, cache: BankCache | None, rank: int = 0, world_size: int = 1) -> tuple[Tensor, int]:
    """A rank's rows, and the number of images encoded for them."""
    bank, extractor = FeatureBank(len(table), 64, World(rank, world_size, torch.device("cpu"))), Counted(table)
    done: list[int] = []
    bank.encode(table, extractor, 128, done.append, cache)
    assert done[-1:] in ([len(bank.local)], [])
    return bank.local, extractor.images


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_bank_written_by_some_ranks_is_read_by_others_bit_for_bit(digits: Table, tmp_path: Path, ranks: int) -> None:
    expected, count = encoded(digits, None)
    assert count == len(digits)
    written = [encoded(digits, cache_of(digits, tmp_path), rank, ranks) for rank in range(ranks)]
    assert torch.equal(torch.cat([rows for rows, _ in written]), expected)
    for others in (1, 2, 4):
        read = [encoded(digits, cache_of(digits, tmp_path), rank, others) for rank in range(others)]
        assert torch.equal(torch.cat([rows for rows, _ in read]), expected)
        assert sum(count for _, count in read) == 0


def test_interrupted_encoding_resumes_from_the_blocks_already_written(digits: Table, tmp_path: Path) -> None:
    class Cut(Counted):
        def forward(self, images: Tensor) -> Tensor:
            if self.images >= 1200:
                raise KeyboardInterrupt
            return super().forward(images)

    bank = FeatureBank(len(digits), 64, World(0, 1, torch.device("cpu")))
    with pytest.raises(KeyboardInterrupt):
        bank.encode(digits, Cut(digits), 128, lambda rows: None, cache=cache_of(digits, tmp_path))
    rows, count = encoded(digits, cache_of(digits, tmp_path))
    assert count == len(digits) - 1024
    assert torch.equal(rows, encoded(digits, None)[0])


def test_damaged_blocks_are_encoded_again(digits: Table, tmp_path: Path) -> None:
    expected, _ = encoded(digits, cache_of(digits, tmp_path))
    files = sorted(tmp_path.glob("*/rows-*"))
    assert len(files) == 4
    for number, file in enumerate(files[:3]):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes([content, content[:-7], b""][number])
    lines: list[str] = []
    rows, count = encoded(digits, cache_of(digits, tmp_path, lines))
    assert torch.equal(rows, expected)
    assert count == 3 * 512
    assert len(lines) == 3
    assert all(line.startswith("features.cache: ") and "\n" not in line for line in lines)
    assert encoded(digits, cache_of(digits, tmp_path))[1] == 0


CHANGES = {"block_rows": 64, "image_size": 112, "extractor": "dinov2", "pixel_constant": 1.0, "pool": "avg"}
CHANGES |= {"network": "other"}
NEEDED = {"pixel_constant": {"extractor": "pixels"}, "network": {"extractor": "timm", "network": "one"}}


def test_every_setting_of_features_but_paths_is_changed_here() -> None:
    assert CHANGES.keys() == FeatureSettings.model_fields.keys() - {"cache", "weights"}


@pytest.mark.parametrize("settings", [{name: value} for name, value in CHANGES.items()], ids=str)
def test_other_settings_have_other_banks(digits: Table, tmp_path: Path, settings: dict[str, object]) -> None:
    needed = NEEDED.get(next(iter(settings)), {})
    one, other = cache_of(digits, tmp_path, **needed), cache_of(digits, tmp_path, **needed | settings)
    assert one is not None
    assert other is not None
    assert one.directory != other.directory


def test_other_data_weights_and_machines_have_other_banks(digits: Table, tmp_path: Path) -> None:
    config = resolve({"features": {"cache": tmp_path}})
    facts = run_facts(config, digits, [PixelFeatures(digits.image_shape)], torch.device("cpu"))
    changes = {"data_fingerprint": "x", "frozen_weights": ["x"], "arithmetic": "x", "packages": {"torch": "x"}}
    others = [facts, *({**facts, name: value} for name, value in changes.items())]
    found = [BankCache.of(config, each, print) for each in others]
    assert len({cache.directory for cache in found if cache}) == 5
    assert found[0] is not None
    assert json.loads((found[0].directory / "bank.json").read_text())["features"]["block_rows"] == 128


def test_cache_path_that_is_no_directory_is_refused_by_name(digits: Table, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/banks")):
        with pytest.raises(UserError, match=r"features\.cache .* cannot be written"):
            cache_of(digits, place)


def test_cache_that_becomes_unwritable_does_not_stop_the_encoding(digits: Table, tmp_path: Path) -> None:
    lines: list[str] = []
    cache = cache_of(digits, tmp_path, lines)
    assert cache is not None
    for file in cache.directory.iterdir():
        file.unlink()
    cache.directory.rmdir()
    cache.directory.write_text("in the way")
    assert torch.equal(encoded(digits, cache)[0], encoded(digits, None)[0])
    assert len(lines) == 1
    assert "the bank is not kept" in lines[0]


def test_without_a_setting_there_is_no_cache(digits: Table) -> None:
    assert cache_of(digits, None) is None


def test_partial_files_of_killed_processes_are_removed_once_they_are_old(digits: Table, tmp_path: Path) -> None:
    place = cache_of(digits, tmp_path).directory
    other = tmp_path / ("ab" * 16)
    other.mkdir()
    left, written, others = (
        place / ".rows-00000.safetensors.12.partial",
        place / ".rows-00001.safetensors.34.partial",
        other / ".rows-00000.safetensors.56.partial",
    )
    for file in (left, written, others, tmp_path / ".mine.partial"):
        file.write_bytes(b"half")
    for file in (left, others, tmp_path / ".mine.partial"):
        os.utime(file, (time.time() - 7200,) * 2)
    cache_of(digits, tmp_path)
    assert [file.exists() for file in (left, written, others, tmp_path / ".mine.partial")] == [False, True, False, True]
