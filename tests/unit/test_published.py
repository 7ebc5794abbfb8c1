"""Published weights come from a cache or a download, with exactly the published bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gfgw_prod.generator import start_generator
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.networks import GeneratorSettings
from gfgw_prod.weights.published import DINOV2, EDM, INCEPTION, VGG16, PublishedFile, obtain

CONTENT = b"weights" * 1000
ALL = [DINOV2, VGG16, INCEPTION, *EDM.values()]


def path_of(published: PublishedFile, given: Path | None, report: Callable[[str], None]) -> Path:
    with obtain(published, given, report) as path:
        return path


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of torch and of the hub; returns torch's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def elsewhere(tmp_path: Path) -> PublishedFile:
    """A small file that is published at a ``file://`` URL."""
    (tmp_path / "net.pth").write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    return PublishedFile("their network", "net.pth", digest, "loss.net", url=(tmp_path / "net.pth").as_uri())


def test_file_is_fetched_once_and_then_cached(elsewhere: PublishedFile, tmp_path: Path, caches: Path) -> None:
    path = path_of(elsewhere, None, print)
    assert path == caches / "net.pth"
    assert path.read_bytes() == CONTENT
    (tmp_path / "net.pth").unlink()
    assert path_of(elsewhere, None, print) == path


def test_publishers_file_of_other_bytes_is_not_kept(elsewhere: PublishedFile, tmp_path: Path, caches: Path) -> None:
    (tmp_path / "net.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"net\.pth of their network .*hash.*set loss\.net to its path"):
        path_of(elsewhere, None, print)
    assert not list(caches.iterdir())


def test_damaged_file_in_the_cache_is_refused_by_name(elsewhere: PublishedFile) -> None:
    path = path_of(elsewhere, None, print)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"is damaged: its SHA-256 is .*loss\.net") as caught:
        path_of(elsewhere, None, print)
    assert str(path) in str(caught.value)


def test_hub_cache_is_searched(elsewhere: PublishedFile, tmp_path: Path) -> None:
    of_hub = replace(elsewhere, repository="they/net")
    revision = tmp_path / "hub" / "models--they--net"
    (revision / "refs").mkdir(parents=True)
    (revision / "refs" / "main").write_text("1234")
    (revision / "snapshots" / "1234").mkdir(parents=True)
    (revision / "snapshots" / "1234" / "net.pth").write_bytes(CONTENT)
    assert path_of(of_hub, None, print).read_bytes() == CONTENT


def test_users_file_is_used_and_logged_if_it_differs(elsewhere: PublishedFile, tmp_path: Path) -> None:
    said: list[str] = []
    assert path_of(elsewhere, tmp_path / "net.pth", said.append) == tmp_path / "net.pth"
    assert not said
    (tmp_path / "tuned.pth").write_bytes(b"tuned")
    assert path_of(elsewhere, tmp_path / "tuned.pth", said.append) == tmp_path / "tuned.pth"
    [line] = said
    assert "loss.net" in line
    assert hashlib.sha256(b"tuned").hexdigest() in line


def test_users_file_that_cannot_be_used_is_refused_without_another_log_line(
    elsewhere: PublishedFile, tmp_path: Path
) -> None:
    said: list[str] = []
    (tmp_path / "notes.txt").write_bytes(b"notes")
    with pytest.raises(UserError, match="no weights"), obtain(elsewhere, tmp_path / "notes.txt", said.append):
        raise UserError("no weights")
    assert not said


@pytest.mark.parametrize("published", ALL, ids=lambda each: each.file)
def test_unreachable_file_is_named_with_its_setting(published: PublishedFile) -> None:
    unreachable = published if published.repository else replace(published, url="http://localhost:9/nothing")
    with pytest.raises(UserError, match="neither cached nor reachable") as caught:
        path_of(unreachable, None, print)
    assert published.file in str(caught.value)
    assert published.setting in str(caught.value)
    assert "\n" not in str(caught.value)


def test_edm_network_of_that_name_must_be_the_published_one(caches: Path) -> None:
    caches.mkdir(parents=True)
    torch.save({}, caches / EDM["edm-cifar10-uncond"].file)
    settings = GeneratorSettings(pretrained=Path("edm-cifar10-uncond"), model_channels=8, num_blocks=1)
    with pytest.raises(UserError, match=r"is damaged.*generator\.pretrained"):
        start_generator(settings, (3, 32, 32), 10, 0, print)
