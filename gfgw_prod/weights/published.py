"""Weights that others publish: found in their libraries' caches or fetched, and taken only if their bytes are right."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gfgw_prod.process.exit_codes import UserError, one_line

PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights: at ``url``, or in the hub's ``repository``."""

    title: str
    file: str
    sha256: str
    setting: str  # names a copy elsewhere
    url: str = ""
    repository: str = ""

    def cached(self) -> Path | None:
        """Where the cache of torch, or of the hub, has it."""
        if self.repository:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(self.repository, self.file)
            return Path(found) if isinstance(found, str) else None
        path = _torch_cache() / self.file
        return path if path.is_file() else None

    def fetch(self) -> Path:
        """Downloads it into that cache."""
        if self.repository:
            from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

            # Without a network the download itself would try again for a minute, line by line.
            get_hf_file_metadata(hf_hub_url(self.repository, self.file), timeout=PATIENCE_SECONDS)
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
# Its name ends with the beginning of its hash. pytorch-fid publishes the same bytes.
INCEPTION = PublishedFile(
    "torch-fidelity's Inception-v3",
    file="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    setting="evaluation.inception",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
# Karras et al. 2022, CC BY-NC-SA 4.0; by the name that generator.pretrained takes.
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
def obtain(published: PublishedFile, given: Path | None, report: Callable[[str], None]) -> Iterator[Path]:
    """The file that the setting names, or else the published one, from a cache or from where it is published.

    A file that the setting names may be another than the published one: reported at the end, if what is done with the
    file within went well. A cached one may not.

    Raises:
        UserError: if there is no such file, it cannot be fetched, or its bytes are not the published ones.
    """
    path = _obtain(published) if given is None else given
    with verify(published, path, report, named=given is not None):
        yield path


@contextmanager
def verify(published: PublishedFile, path: Path, report: Callable[[str], None], *, named: bool) -> Iterator[None]:
    """Around what is done with a file that is there: ``obtain`` for one that is never fetched.

    Args:
        named: whether the user named it; it may then be another than the published one.

    Raises:
        UserError: if there is no such file, or its bytes are not the published ones.
    """
    # The functions of os.path take loops of links and names that are too long for what is not there.
    if not os.path.isfile(path):
        raise UserError(
            f"{published.setting}: no file {path}; it should be {published.file} of {published.title}, or one like it"
        )
    if (found := _sha256(path)) != published.sha256 and not named:
        raise UserError(
            f"{path} is damaged: its SHA-256 is {found}, that of {published.title} is {published.sha256}; "
            f"delete it, or name a whole copy as {published.setting}"
        )
    yield
    if found != published.sha256:
        report(f"{published.setting}: {path} is not {published.file} of {published.title}; its SHA-256 is {found}")


def _obtain(published: PublishedFile) -> Path:
    try:
        return published.cached() or published.fetch()
    except (
        Exception
    ) as error:  # clients raise many kinds: offline, refused, no name service, proxy, not found, full disk
        raise UserError(
            f"{published.file} of {published.title} is neither cached nor reachable ({one_line(error, 200)}); "
            f"put it anywhere and name it as {published.setting}"
        ) from None


def _torch_cache() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
