"""The image is built and run: its contents, its user, how it stops and resumes."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gfgw_prod.process.exit_codes import BAD_INPUT, PREEMPTED

from ..process import runs
from .engine import BASE, HOST, IMAGE, do, podman, secret_words

pytestmark = pytest.mark.timeout(1500)
CONFINED = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop=all", "--security-opt", "no-new-privileges", "--network=host"),
    *("--shm-size", "512m", "--stop-timeout", "60", "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"),
)
TOOLS = {
    "gcc",
    "g++",
    "cc",
    "c++",
    "make",
    "ld",
    "as",
    "pip",
    "pip3",
    "uv",
    "hatchling",
    "git",
    "curl",
    "wget",
    "dpkg-dev",
}
CACHES = ("root/.cache", "var/lib/apt/lists", "var/cache/apt")
SMALL_BYTES = 1 << 18  # largest file that is searched


@pytest.fixture(scope="module")
def tree(image: dict[str, Any]) -> Iterator[Path]:
    """The image's files."""
    place = podman("image", "mount", IMAGE).stdout.strip()
    yield Path(place)
    podman("image", "unmount", IMAGE)


def test_image_describes_itself_and_runs_as_an_unprivileged_user(image: dict[str, Any]) -> None:
    config = image["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["tini", "--", "/workspace/docker/entrypoint.sh"]
    assert config["StopSignal"] in ("SIGTERM", "15")
    caches = {each.split("=")[0] for each in config["Env"] if "=/workspace/data/" in each}
    assert caches >= {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}  # /tmp is mounted noexec
    labels = config["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.revision"] == "0123456789abcdef"
    assert image["Healthcheck"]["Test"] == ["CMD", "python3", "/workspace/docker/healthcheck.py"]


def test_image_has_no_build_tools_and_no_caches(tree: Path) -> None:
    places = ("usr/bin", "usr/local/bin", "bin", "sbin", "usr/sbin", "opt/venv/bin")
    there = {found.name for place in places if (tree / place).is_dir() for found in (tree / place).iterdir()}
    assert there & TOOLS == set()
    for place in (*CACHES, "tmp", "build", "var/log", "run/secrets"):
        left = [str(found.relative_to(tree)) for found in (tree / place).rglob("*") if not found.is_dir()]
        assert left == [], place
    assert not [*(tree / "opt/venv").rglob("*.whl")]
    assert {found.name for found in (tree / "workspace").iterdir()} == {
        *("LICENSE", "configs", "docker", "launch", "runs", "data")
    }


def layers(image: dict[str, Any]) -> list[Path]:
    """Directories of the layers, without those of the base."""
    data = image["GraphDriver"]["Data"]
    of_base = json.loads(podman("image", "inspect", BASE).stdout)[0]["GraphDriver"]["Data"]["UpperDir"]
    found = [data["UpperDir"], *filter(None, data.get("LowerDir", "").split(":"))]
    return [Path(place) for place in found if place != of_base]


def test_no_layer_holds_a_secret_or_a_cache_or_the_name_of_the_build_machine(image: dict[str, Any]) -> None:
    telling = [HOST.encode(), b"BEGIN PRIVATE KEY", b"BEGIN RSA PRIVATE KEY", b"BEGIN OPENSSH PRIVATE KEY"]
    history = podman("history", "--no-trunc", "--format", "{{.CreatedBy}}", IMAGE).stdout
    found = [f"history: {word!r}" for word in telling if word.decode() in history]
    for layer in layers(image):
        for file in layer.rglob("*"):
            assert not (file.is_file() and str(file.relative_to(layer)).startswith(CACHES)), file
            if file.name in ("pip.conf", "uv.toml", ".netrc", ".pypirc", "ca.pem", ".bash_history"):
                assert file.stat().st_size == 0, file
            # Libraries that write keys contain these words.
            if file.suffix in (".py", ".pyc", ".so") or file.is_symlink() or not file.is_file():
                continue
            content = file.read_bytes() if file.stat().st_size <= SMALL_BYTES else b""
            found += [f"{file}: {word!r}" for word in telling if word in content]
    assert found == []


def test_secrets_of_the_build_are_nowhere_in_the_image(image: dict[str, Any]) -> None:
    words = secret_words()
    told = json.dumps(image) + podman("history", "--no-trunc", IMAGE).stdout
    assert [word for word in words if word in told] == []
    patterns = [argument for word in words for argument in ("-e", word)]
    searched = do("grep", "-rlF", *patterns, "--", *map(str, layers(image)), check=False)
    assert (searched.returncode, searched.stdout) == (1, ""), searched.stderr  # 1: looked everywhere, found nothing


def test_image_adds_little_but_the_locked_environment(image: dict[str, Any]) -> None:
    history = json.loads(podman("history", "--format", "json", IMAGE).stdout)
    environment = max(int(each["size"]) for each in history)
    base = json.loads(podman("image", "inspect", BASE).stdout)[0]["Size"]
    rest = image["Size"] - base - environment
    print(f"base {base / 1e6:,.0f} MB, environment {environment / 1e6:,.0f} MB, the rest {rest / 1e6:,.1f} MB")
    assert environment < 9e9
    assert rest < 80e6


class Container:
    """A training container with its own run directory."""

    def __init__(self, directory: Path):
        self.port = runs.free_port()
        self.directory = directory
        for name in ("runs", "data"):
            (directory / name).mkdir(mode=0o777)
            shutil.chown(directory / name, 10001, 10001)
        self.volumes = [f"--volume={directory / name}:/workspace/{name}" for name in ("runs", "data")]
        self.name = f"gfgw-{self.port}"

    def start(self) -> None:
        """Start the container, for the first time or again."""
        if podman("container", "exists", self.name, check=False).returncode == 0:
            podman("start", self.name)
            return
        variables = ["--env", f"METRICS_PORT={self.port}"]
        arguments = [
            "--config",
            "configs/digits.yaml",
            "--telemetry.log-every-kimg",
            "0.5",
            "--train.total-kimg",
            "1e6",
        ]
        podman("run", "--detach", "--name", self.name, *CONFINED, *variables, *self.volumes, IMAGE, *arguments)

    def said(self) -> str:
        """Its output so far."""
        return podman("logs", self.name).stderr

    def step(self) -> int:
        """The last recorded step."""
        return runs.last_step(self.directory / "runs" / "digits")

    def wait_for_step(self, step: int) -> None:
        """Wait for a step."""
        deadline = time.monotonic() + 300
        while self.step() < step:
            state = podman("inspect", "--format", "{{.State.Status}}", self.name).stdout.strip()
            assert state == "running", self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(1)

    def stop(self) -> tuple[int, float]:
        """Exit code after `podman stop`, and how long it took."""
        began = time.monotonic()
        podman("stop", self.name)
        took = time.monotonic() - began
        return int(podman("inspect", "--format", "{{.State.ExitCode}}", self.name).stdout), took


@pytest.fixture
def container(image: dict[str, Any], tmp_path: Path) -> Iterator[Container]:
    found = Container(tmp_path)
    yield found
    podman("rm", "--force", found.name, check=False)


def test_training_is_healthy_saves_when_stopped_and_resumes_when_started(container: Container) -> None:
    container.start()
    container.wait_for_step(20)
    healthy = podman("healthcheck", "run", container.name, check=False)
    assert healthy.returncode == 0, healthy.stdout
    status = podman("top", container.name, "user", "capeff", "args").stdout
    ranks = [line.split() for line in status.splitlines()[1:] if "gfgw_prod" in line]
    assert ranks
    assert {line[1] for line in ranks} == {"none"}

    code, took = container.stop()
    assert (code, took < 55) == (PREEMPTED, True), container.said()
    stopped_at = container.step()
    saved = sorted((container.directory / "runs" / "digits" / "checkpoints").glob("step-*"))
    assert saved
    assert {file.stat().st_uid for file in saved[-1].iterdir()} == {10001}

    container.start()
    container.wait_for_step(stopped_at + 5)
    assert "resumed at " in container.said()
    assert container.stop()[0] == PREEMPTED, container.said()


def test_exit_codes_and_other_commands_pass_through(image: dict[str, Any]) -> None:
    once = ("run", "--rm", *CONFINED)
    refused = podman(*once, IMAGE, "--config", "configs/digits.yaml", "--train.batch-size", "0", check=False)
    assert refused.returncode == BAD_INPUT
    assert re.search(r"train\.batch_size", refused.stderr)
    assert podman(*once, IMAGE, "doctor", check=False).stdout.startswith("ok ")
    assert podman(*once, IMAGE, "sh", "-c", "exit 7", check=False).returncode == 7
    # podman sometimes loses the output of a container that ends at once.
    lasting = (*once, IMAGE, "sh", "-c")
    assert podman(*lasting, "id -u; sleep 1").stdout.strip() == "10001"
    written = podman(*lasting, "touch /workspace/configs/x; code=$?; sleep 1; exit $code", check=False)
    assert written.returncode
    assert "Read-only file system" in written.stderr
