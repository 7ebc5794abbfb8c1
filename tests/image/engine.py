"""Builds of the Dockerfile with buildah and runs with podman, as root on Debian, without a daemon."""

from __future__ import annotations

import configparser
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from ..process import debian, runs

BASE, IMAGE = "localhost/gfgw-base:bookworm", "localhost/gfgw-test"
PACKAGES = ("buildah", "podman", "runc", "debootstrap")
FREE_GB = 30  # the environment exists three times while its layer is made
PODMAN = ("podman", "--cgroup-manager", "cgroupfs", "--runtime", "runc")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# Constant, so that cached layers were built with it, too.
MARKER = "d41a7c0e93b85f26c17e4fb2908ad653"
HOST = "builder-6b7f1e0c4d"


def require() -> None:
    """Skip the test where the image cannot be built."""
    if shutil.disk_usage("/var/lib").free < FREE_GB * 1e9:
        pytest.skip(f"building the image takes {FREE_GB} GB in /var/lib/containers")
    debian.require("buildah and podman", PACKAGES, PACKAGES, needs_root=True)


def do(
    *command: str, limit_seconds: float = 300, check: bool = True, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository.

    Raises:
        TimeoutError: after the limit, with a list of all processes. The command's session is killed.
    """
    # Files, not pipes: a process that is left behind, such as a container's monitor, would keep a pipe open.
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            command,
            cwd=runs.ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        code = None
        try:
            code = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            listing = ("ps", "axf", "-o", "pid,ppid,stat,wchan:24,etimes,args")
            living = subprocess.run(listing, capture_output=True, text=True, timeout=30, check=False).stdout
        finally:
            if code is None:
                os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):  # a process that waits for a disk cannot be killed
                    process.wait(10)
        for file in (stdout, stderr):
            file.seek(0)
        said = stdout.read(), stderr.read()
    told = f"{' '.join(command)}\n{said[0][-3000:]}\n{said[1][-3000:]}"
    if code is None:
        raise TimeoutError(f"no end after {limit_seconds} s: {told}\n{living}")
    assert code == 0 or not check, f"exit code {code}: {told}"
    return subprocess.CompletedProcess(command, code, *said)


def podman(
    *arguments: str, check: bool = True, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run podman. Skip the test if podman hangs although none of our containers runs: not the image's fault."""
    try:
        return do(*PODMAN, *arguments, check=check, environment=environment)
    except TimeoutError as error:
        try:
            ours = do(*PODMAN, "ps", "--quiet", "--filter", f"ancestor={IMAGE}", limit_seconds=60, check=False).stdout
        except TimeoutError:
            ours = ""
        if ours:
            raise
        pytest.skip(f"podman does not answer: {error}")


def make_base(directory: Path) -> None:
    """Make the base image, a minimal Debian, unless it exists."""
    if podman("image", "exists", BASE, check=False).returncode == 0:
        return
    tree, archive = directory / "rootfs", directory / "rootfs.tar"
    debian.bootstrap("bookworm", tree)
    do("tar", "-C", str(tree), "-cf", str(archive), ".")
    podman("import", str(archive), BASE)


def build(directory: Path) -> None:
    """Build the image on that base, on a machine named ``HOST``.

    Behind a proxy, pip trusts the certificates of this machine during the build.

    Args:
        directory: for files of secrets, which all contain the marker.
    """
    index = os.environ.get("PIP_CONFIG_FILE")
    given = {"pipconf": Path(index).read_text() if index else "[global]\n"}
    if BUNDLE.exists():
        given["ca"] = BUNDLE.read_text()
    secrets = []
    for name, content in given.items():
        place = directory / name
        place.touch(mode=0o600)
        place.write_text(f"{content}\n# {MARKER}\n")
        secrets += ["--secret", f"id={name},src={place}"]
    isolated = ["--isolation", "chroot", "--format", "docker", "--layers"]
    arguments = ["--build-arg", f"BASE_IMAGE={BASE}", "--build-arg", "REVISION=0123456789abcdef"]
    named = ["unshare", "--uts", "sh", "-c", f'hostname {HOST}; exec "$@"', "sh"]
    builder = (*named, "buildah", "--storage-driver", "overlay", "build")
    do(*builder, *isolated, *arguments, *secrets, "--tag", IMAGE, ".", limit_seconds=1200)


def secret_words() -> list[str]:
    """Words that would reveal the secrets: the marker, and addresses of private package indices."""
    config = configparser.RawConfigParser()
    config.read(os.environ.get("PIP_CONFIG_FILE", ""))
    values = [value for section in config.sections() for name, value in config.items(section) if "index-url" in name]
    return [MARKER, *(word for value in values for word in value.split() if "//pypi.org/" not in word)]
