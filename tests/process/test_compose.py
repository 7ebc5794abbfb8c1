"""docker-compose accepts the compose file, which confines its containers to loopback."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import debian, runs

FILE = runs.ROOT / "docker" / "compose.yaml"


@pytest.fixture(scope="module", autouse=True)
def docker_compose() -> None:
    debian.require("docker-compose", ("docker-compose",), ("docker-compose",))


def composed(*files: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The configuration that docker-compose resolves."""
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    chosen = [word for file in files or (FILE,) for word in ("-f", str(file))]
    with tempfile.NamedTemporaryFile() as empty:  # instead of a local .env
        command = ["docker-compose", "--env-file", empty.name, *chosen, "config"]
        return subprocess.run(
            command, env={**environment, **variables}, capture_output=True, text=True, timeout=60, check=False
        )


def services(**variables: str) -> dict[str, Any]:
    done = composed(GRAFANA_ADMIN_PASSWORD="of a test", **variables)
    assert done.returncode == 0, done.stderr
    return dict(yaml.safe_load(done.stdout)["services"])


def addresses(found: dict[str, Any]) -> set[str]:
    return {port.split(":")[0] for service in found.values() for port in service["ports"]}


def test_nothing_starts_without_a_password() -> None:
    for variables in ({}, {"GRAFANA_ADMIN_PASSWORD": ""}):
        refused = composed(**variables)
        assert refused.returncode != 0
        assert "GRAFANA_ADMIN_PASSWORD" in refused.stderr
    grafana = services()["grafana"]["environment"]
    assert grafana["GF_SECURITY_ADMIN_PASSWORD"] == "of a test"
    assert (grafana["GF_AUTH_ANONYMOUS_ENABLED"], grafana["GF_USERS_ALLOW_SIGN_UP"]) == ("false", "false")


def test_ports_are_on_loopback_unless_bind_address_says_otherwise() -> None:
    found = services()
    assert set(found) == {"trainer", "prometheus", "alertmanager", "grafana", "tensorboard"}
    assert addresses(found) == {"127.0.0.1"}
    assert addresses(services(BIND_ADDRESS="192.0.2.7")) == {"192.0.2.7"}


def test_every_container_is_confined() -> None:
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert name in ("trainer", "tensorboard") or ":" in service["image"], "a version, not the latest"


def test_gpus_are_an_overlay() -> None:
    done = composed(FILE, FILE.with_name("compose.gpu.yaml"), GRAFANA_ADMIN_PASSWORD="of a test")
    assert done.returncode == 0, done.stderr
    devices = yaml.safe_load(done.stdout)["services"]["trainer"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"capabilities": ["gpu"], "count": "all", "driver": "nvidia"}] or devices[0]["count"] == -1


def test_mounted_files_exist() -> None:
    for service in services().values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("/") or Path(source).exists(), source


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make with a password in its environment."""
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=runs.ROOT,
        env=runs.environment({"GRAFANA_ADMIN_PASSWORD": "of a test"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_each_clone_has_its_own_stack_and_prints_its_addresses(tmp_path: Path) -> None:
    said, fake = tmp_path / "said", tmp_path / "compose"
    fake.write_text(f'#!/bin/sh\necho "$@" >>{said}\ncase $5 in port) echo 127.0.0.1:$7 ;; esac\n')
    fake.chmod(0o755)
    for place, name in (("CURDIR=/home/me/My Clone.2", "myclone2"), ("COMPOSE_PROJECT_NAME=other", "other")):
        done = make("up", "DOCKER=true", f"COMPOSE={fake}", place)
        assert done.returncode == 0, done.stderr
        assert "grafana       http://127.0.0.1:3000" in done.stdout
        assert f"--project-name {name} -f docker/compose.yaml up --detach" in said.read_text()
    real = make("compose", "COMPOSE=docker-compose", "ARGS=config --services")
    assert set(real.stdout.split()) == {"trainer", "prometheus", "alertmanager", "grafana", "tensorboard"}, real.stderr


def test_arguments_that_make_up_would_drop_are_refused() -> None:
    refused = make("up", "DOCKER=false", "ARGS=--train.total-kimg 5")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "CONFIG=configs/mine.yaml" in refused.stderr
