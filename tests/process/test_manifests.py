"""The Kubernetes manifests are valid, and agree with the code, the scripts and the image."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import kubernetes_validate
import pytest

from gfgw_prod.commands import cli
from gfgw_prod.process.exit_codes import BAD_INPUT, CRASH_LOOP, CRASHED, PREEMPTED
from gfgw_prod.settings import reading

from . import runs
from .manifests import CANNOT, CONFIG_PLACE, DIRECTORY, KUBERNETES, Manifests

pytestmark = pytest.mark.skipif(bool(CANNOT), reason=CANNOT)

SOURCES = {"base": runs.DIGITS, "a100": runs.ROOT / "configs" / "cifar10.yaml"}


@pytest.fixture(scope="module", params=SOURCES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def manifests(name: str) -> Manifests:
    return Manifests(name)


def problem(manifest: dict[str, Any]) -> str:
    """The error of a manifest against the API's published schema, or nothing."""
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


def test_every_manifest_is_valid(manifests: Manifests) -> None:
    assert {each["kind"]: problem(each) for each in manifests.objects if problem(each)} == {}
    kinds = {"Job", "Service", "ConfigMap", "PersistentVolumeClaim", "NetworkPolicy"}
    assert {each["kind"] for each in manifests.objects} == kinds


FREE = {"labels", "matchLabels", "selector", "annotations", "requests", "limits", "data"}  # mappings with free keys


def fields(node: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every mapping and each of its fields, recursively."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if isinstance(node, dict):
            yield node, key
        if key not in FREE:
            yield from fields(value)


def test_misspelt_field_is_found_wherever_it_stands() -> None:
    for manifest in Manifests("base").objects:
        changed = copy.deepcopy(manifest)
        found = {field: mapping for mapping, field in fields(changed) if field not in ("apiVersion", "kind")}
        for field, mapping in found.items():
            mapping[f"{field}s"] = mapping.pop(field)
            assert problem(changed), f"{manifest['kind']}: {field}"
            mapping[field] = mapping.pop(f"{field}s")
        assert changed == manifest


def test_job_treats_exit_codes_as_the_trainer_means_them(manifests: Manifests) -> None:
    for code in (BAD_INPUT, CRASH_LOOP):
        assert manifests.action(code, {}) == "FailJob"
    assert manifests.action(PREEMPTED, {}) == "Ignore"
    for code in (CRASHED, 134, 137, 139, 143):
        assert manifests.action(code, {}) == "Count"
        assert manifests.action(code, {"DisruptionTarget": "True"}) == "Ignore"
    for rule in manifests.spec["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes", {"values": [1]})["values"]
        assert codes == sorted({*codes} - {0})  # or the API server refuses
    assert manifests.pod["restartPolicy"] == "Never"
    assert manifests.spec["podReplacementPolicy"] == "Failed"


def test_pods_are_the_nodes_and_each_has_a_gpu_per_rank(manifests: Manifests) -> None:
    assert manifests.spec["completions"] == manifests.spec["parallelism"] == manifests.nodes
    limits = manifests.trainer["resources"]["limits"]
    if "nvidia.com/gpu" in limits:
        assert limits["nvidia.com/gpu"] == int(manifests.values["NPROC"])


def test_arguments_and_settings_allow_that_many_ranks(
    manifests: Manifests, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(manifests.settings)
    place = {CONFIG_PLACE: str(tmp_path / "run.yaml")}
    arguments = [place.get(each, each) for each in manifests.trainer["args"]]
    code = cli.main(["train", *arguments, "--dry-run", "--ranks", str(manifests.ranks)])
    assert code == 0, capsys.readouterr().err


def test_settings_are_those_of_the_repository(manifests: Manifests, name: str) -> None:
    assert manifests.settings == (DIRECTORY / name / "run.yaml").read_text() == SOURCES[name].read_text()


def test_variables_are_those_of_the_launcher(manifests: Manifests) -> None:
    documented = set(re.findall(r"^#   ([A-Z_]+) ", runs.ELASTIC.read_text(), re.MULTILINE))
    assert manifests.values.keys() - documented == {"JOB_NAME", "NAMESPACE"}  # parts of RDZV_ENDPOINT


def test_grace_period_of_a_pod_exceeds_that_of_its_ranks(manifests: Manifests) -> None:
    assert manifests.pod["terminationGracePeriodSeconds"] >= int(manifests.values["GRACE_SECONDS"]) + 15


def test_probes_that_end_pods_outlast_a_rendezvous(manifests: Manifests) -> None:
    for probe in ("startupProbe", "livenessProbe"):
        assert manifests.patience(probe) >= int(manifests.values["RDZV_TIMEOUT"]) + 300


def test_liveness_waits_longer_than_the_watchdog(manifests: Manifests, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(manifests.settings)
    config = reading.resolve(reading.read_yaml(tmp_path / "run.yaml"))
    assert manifests.patience("livenessProbe") > config.resilience.hang_seconds


def test_probes_and_scrapers_ask_the_port_that_the_run_listens_on(manifests: Manifests) -> None:
    arguments = manifests.trainer["args"]
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    port = options["--telemetry.prometheus-port"]
    assert options["--telemetry.prometheus-address"] == "0.0.0.0"
    for probe, path in (("startupProbe", "/live"), ("livenessProbe", "/live"), ("readinessProbe", "/ready")):
        assert manifests.page(probe) == (int(port), path)
    scraped = manifests.spec["template"]["metadata"]["annotations"]
    assert (scraped["prometheus.io/port"], scraped["prometheus.io/path"]) == (port, "/metrics")


def test_pods_have_names_that_resolve_before_they_are_ready(manifests: Manifests) -> None:
    service, job = manifests.only("Service"), manifests.job["metadata"]["name"]
    assert manifests.pod["subdomain"] == service["metadata"]["name"] == job
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    labels = manifests.spec["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert manifests.only("NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    endpoint = manifests.environment("research", "10.0.0.7")["RDZV_ENDPOINT"]
    assert endpoint == f"{job}-0.{job}.research.svc.cluster.local:29400"


def test_runs_and_data_are_kept_and_nothing_else_is_written(manifests: Manifests, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(manifests.settings)
    config = reading.resolve(reading.read_yaml(tmp_path / "run.yaml"))
    claims = {each["name"] for each in manifests.pod["volumes"] if "persistentVolumeClaim" in each}
    mounts = {each["mountPath"]: each["name"] for each in manifests.trainer["volumeMounts"]}
    for kept in (config.run.dir, config.data.path or Path("data")):
        inside = [place for place in mounts if PurePosixPath("/workspace", kept).is_relative_to(place)]
        assert {mounts[place] for place in inside} <= claims
        assert inside
    assert {"/tmp", "/dev/shm"} < mounts.keys()
    assert manifests.trainer["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_pods_run_as_the_user_of_the_image(manifests: Manifests) -> None:
    context = manifests.pod["securityContext"]
    user = f"USER {context['runAsUser']}:{context['runAsGroup']}"
    assert user in (runs.ROOT / "Dockerfile").read_text().splitlines()
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
