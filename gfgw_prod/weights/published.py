"""Published weights: find them in a cache or download them, and check their bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gfgw_prod.process.exit_codes import UserError, one_line
from gfgw_prod.process.standard_streams import Warned

TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights, at ``url`` or in a ``repository`` of the Hugging Face hub."""

    title: str
    file: str
    sha256: str  # empty if none is published
    setting: str  # that names another file
    url: str = ""
    repository: str = ""

    @property
    def source(self) -> str:
        """Where it is published."""
        return self.url or f"https://huggingface.co/{self.repository}"

    def cached(self) -> Path | None:
        """Path of the file in the cache of torch or of the hub, if it is there."""
        if self.repository:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(self.repository, self.file)
            return Path(found) if isinstance(found, str) else None
        path = _torch_cache() / self.file
        return path if path.is_file() else None

    def fetch(self) -> Path:
        """Download the file into that cache."""
        if self.repository:
            from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

            # Fails fast without a network, where the download itself would retry for a minute.
            get_hf_file_metadata(hf_hub_url(self.repository, self.file), timeout=TIMEOUT_SECONDS)
            return Path(hf_hub_download(self.repository, self.file))
        import torch

        path = _torch_cache() / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(self.url, str(path), hash_prefix=self.sha256, progress=False)
        return path


DINOV2 = PublishedFile(
    "timm's vit_small_patch14_dinov2.lvd142m",
    file="model.safetensors",
    sha256="04d27f3400d059fc0cfd7d17dd1909a75bf3ea8fb3eeb48b97cb99e57ee20081",
    setting="features.weights",
    repository="timm/vit_small_patch14_dinov2.lvd142m",
)
VGG16 = PublishedFile(
    "torchvision's VGG-16",
    file="vgg16-397923af.pth",
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    setting="loss.lpips_trunk",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
)
# pytorch-fid publishes the same bytes.
INCEPTION = PublishedFile(
    "torch-fidelity's Inception-v3",
    file="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    setting="evaluation.inception",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
# Karras et al. 2022, CC BY-NC-SA 4.0; by the value of generator.pretrained.
EDM = {
    "edm-cifar10-uncond": PublishedFile(
        "EDM's unconditional CIFAR-10 network",
        file="edm-cifar10-32x32-uncond-vp.pkl",
        sha256="4d5dcc1f1d0d41c8934ad21626eeddbdc0460182becf9fc059a0631b1eedb4da",
        setting="generator.pretrained",
        url="https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-uncond-vp.pkl",
    )
}


@contextmanager
def obtain(published: PublishedFile, given: Path | None, log: Callable[[str], None]) -> Iterator[Path]:
    """Context with the path of the user's file or, without one, of the published file, which is downloaded if needed.

    Args:
        given: the user's file. It may differ from the published one, which is logged at the end unless its use failed.

    Raises:
        UserError: if the file does not exist, cannot be downloaded, or is a damaged copy of the published one.
    """
    path = _cached_or_fetched(published) if given is None else given
    with verify(published, path, log, user_given=given is not None):
        yield path


@contextmanager
def verify(published: PublishedFile, path: Path, log: Callable[[str], None], *, user_given: bool) -> Iterator[None]:
    """Around the use of a file: check its bytes as ``obtain`` does, and raise as it does, without a download.

    Args:
        user_given: whether the user named the file. It may then differ from the published one.
    """
    check_exists(published, path)
    expected = published.sha256
    if (found := _sha256(path)) != expected and expected and not user_given:
        raise UserError(
            f"{path} is damaged: its SHA-256 is {found}, that of {published.title} is {expected}; "
            f"delete it, or set {published.setting} to an intact copy"
        )
    yield
    if found != expected and expected:
        log(Warned(f"{published.setting}: {path} is not {published.file} of {published.title}; its SHA-256 is {found}"))


def check_exists(published: PublishedFile, path: Path) -> None:
    """Raise ``UserError`` if there is no such file."""
    # os.path treats loops of links and too long names as missing files; pathlib raises.
    if not os.path.isfile(path):
        raise UserError(
            f"{published.setting}: no file {path}; it should be {published.file} of {published.title}, or one like it"
        )


def _cached_or_fetched(published: PublishedFile) -> Path:
    try:
        return published.cached() or published.fetch()
    except Exception as error:  # download clients raise errors of many kinds
        raise UserError(
            f"{published.file} of {published.title} is neither cached nor reachable ({one_line(error, 200)}); "
            f"download it from {published.source} elsewhere and set {published.setting} to its path"
        ) from None


def why_unreadable(error: Exception) -> str:
    """One line on why a file cannot be read as weights."""
    # Of a file without tensors torch says how to trust it all the same.
    return "it holds no tensors" if "weights_only" in str(error) else one_line(error, 200)


def _torch_cache() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
