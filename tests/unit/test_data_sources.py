"""Data sets as tables: digits against scikit-learn, CIFAR-10 from archives in its format."""

import hashlib
import http.server
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from gfgw_prod.data.sources import Table, load_table, outline_of
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.config import DataSettings

ARCHIVE = "cifar-10-python.tar.gz"


def test_digits_are_scikit_learns() -> None:
    digits, table = load_digits(), load_table(DataSettings(source="digits"))
    assert np.array_equal(table.images[:, 0].numpy(), digits.images)
    assert np.array_equal(table.labels.numpy(), digits.target)
    assert outline_of(DataSettings()) == (
        table.image_shape,
        table.num_classes,
        len(table),
        table.labels.bincount().max(),
    )


def test_rows_span_minus_one_to_one(table: Table) -> None:
    ids = torch.tensor([3, 50, 3])
    torch.testing.assert_close(table.rows(ids), table.images[ids].double().div(8).sub(1).float())
    assert table.rows(torch.arange(60)).min() == -1
    assert table.rows(torch.arange(60)).max() == 1


def test_fingerprint_changes_with_any_pixel_label_or_scale(table: Table) -> None:
    images, labels = table.images.clone(), table.labels.clone()
    images[59, 0, 3, 3] += 1
    labels[0] += 1
    others = [
        Table(images, table.labels, 16, 3),
        Table(table.images, labels, 16, 3),
        Table(table.images, table.labels, 255, 3),
    ]
    same = Table(table.images.clone(), table.labels.clone(), 16, 3)
    assert same.fingerprint() == table.fingerprint()
    assert len({other.fingerprint() for other in others} | {table.fingerprint()}) == 4


@pytest.fixture
def requests_seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The requests to a local server that stands for CIFAR-10's and has no files."""
    seen: list[str] = []

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{ARCHIVE}")
    yield seen
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requests_seen: list[str]) -> dict[str, np.ndarray]:
    """An archive of 20 training images in the official format, with its checksums set in torchvision."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
    labels = random.integers(0, 10, 24)
    folder = tmp_path / "made" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for index, name in enumerate(names):
        rows = slice(4 * index, 4 * index + 4)
        content = {"data": images[rows].reshape(4, 3072), "labels": labels[rows].tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))
    (tmp_path / "data").mkdir()
    archive = tmp_path / "data" / ARCHIVE
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, CIFAR10.base_folder)

    def digest(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    monkeypatch.setattr(CIFAR10, "tgz_md5", digest(archive))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, digest(folder / name)] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[5], digest(folder / names[5])]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": digest(folder / "batches.meta")})
    return {"images": images[:20], "labels": labels[:20]}


def cifar10(path: Path | None, *, download: bool = False) -> Table:
    return load_table(DataSettings(source="cifar10", path=path, download=download))


def test_cifar10_archive_is_read_without_a_network(official: dict, requests_seen: list[str], tmp_path: Path) -> None:
    table = cifar10(tmp_path / "data")
    assert np.array_equal(table.images.numpy(), official["images"])
    assert np.array_equal(table.labels.numpy(), official["labels"])
    assert (table.image_shape, table.num_classes, table.peak) == ((3, 32, 32), 10, 255)
    assert requests_seen == []


def test_unpacked_cifar10_needs_no_archive(official: dict, requests_seen: list[str], tmp_path: Path) -> None:
    cifar10(tmp_path / "data")
    (tmp_path / "data" / ARCHIVE).unlink()
    assert np.array_equal(cifar10(tmp_path / "data").images.numpy(), official["images"])
    assert requests_seen == []


@pytest.mark.parametrize("download", [False, True])
def test_wrong_archive_is_refused_in_one_line(download: bool, requests_seen: list[str], tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_bytes(b"not the archive")
    with pytest.raises(UserError, match=r"data\.path") as caught:
        cifar10(tmp_path, download=download)
    assert "\n" not in str(caught.value)
    assert ARCHIVE in str(caught.value)


@pytest.mark.parametrize("content", ["wrong archive", "empty folder"])
def test_nothing_is_fetched_when_downloads_are_off(content: str, requests_seen: list[str], tmp_path: Path) -> None:
    if content == "wrong archive":
        (tmp_path / ARCHIVE).write_bytes(b"not the archive")
    else:
        (tmp_path / CIFAR10.base_folder).mkdir()
    with pytest.raises(UserError):
        cifar10(tmp_path, download=False)
    assert requests_seen == []


def test_failed_download_is_refused_in_one_line(requests_seen: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path") as caught:
        cifar10(tmp_path / "new", download=True)
    assert requests_seen == [f"/{ARCHIVE}"]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["unset", "missing", "empty", "file"])
def test_path_without_the_archive_is_refused_by_name(place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.path"):
        cifar10(None if place == "unset" else tmp_path / place)
