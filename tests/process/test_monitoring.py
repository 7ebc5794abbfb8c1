"""Monitoring with real servers: Prometheus scrapes a run, rules fire in Alertmanager, dashboards find data."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gfgw_prod.telemetry.catalogue import CATALOGUE, GPU

from . import copies, monitoring, runs

DASHBOARD = json.loads((monitoring.DOCKER / "grafana" / "dashboards" / "gfgw.json").read_text())
RULES = yaml.safe_load(monitoring.RULES.read_text())["groups"][0]["rules"]
# After a resume these fall, but not to zero: rate() and similar functions would see a jump.
FALLING = "gfgw_(images_seen|steps|skipped_steps|rollbacks)_total"
OF_CLIENT = {"up", "ALERTS", "process_start_time_seconds", "process_cpu_seconds_total"}


@pytest.fixture(scope="module", autouse=True)
def prometheus() -> None:
    monitoring.require()


def expressions() -> list[str]:
    """Every query of the dashboard, as Grafana sends it."""
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    queries += [each["expr"] for each in DASHBOARD["annotations"]["list"]]
    return [query.replace("$__rate_interval", "1m").replace("$instance", "INSTANCE") for query in queries]


def promtool(*arguments: str, cwd: Path = runs.ROOT) -> str:
    """Output of promtool, which must succeed."""
    done = subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_fire_only_when_they_should() -> None:
    promtool("check", "config", "docker/prometheus/prometheus.yml")
    files = sorted((runs.ROOT / "tests" / "rules").glob("*.yml"))
    assert "FAILED" not in promtool("test", "rules", *map(str, files))
    tests = [test for file in files for test in yaml.safe_load(file.read_text())["tests"]]
    cases = [
        (each["alertname"], bool(each["exp_alerts"])) for test in tests for each in test.get("alert_rule_test", [])
    ]
    for rule in RULES:
        assert {fires for name, fires in cases if name == rule["alert"]} == {True, False}, rule["alert"]


def relabelled(job: dict[str, Any], labels: dict[str, str]) -> dict[str, str] | None:
    """The labels that Prometheus gives a target; ``None`` if it does not scrape it."""
    for rule in job["relabel_configs"]:
        found = rule.get("separator", ";").join(labels.get(name, "") for name in rule["source_labels"])
        if rule.get("action") == "keep":
            if not re.fullmatch(rule["regex"], found):
                return None
        else:
            labels = {**labels, rule["target_label"]: found}
    return {name: value for name, value in labels.items() if not name.startswith("__")}


def test_pods_are_found_and_a_replaced_one_stays_the_same_instance(tmp_path: Path) -> None:
    config = yaml.safe_load((runs.ROOT / "launch" / "kubernetes" / "prometheus-scrape.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "gfgw"
    base = yaml.safe_load((runs.ROOT / "launch" / "kubernetes" / "base" / "kustomization.yaml").read_text())
    ((_, name),) = base["labels"][0]["pairs"].items()
    pod = {
        "__meta_kubernetes_namespace": "research",
        "__meta_kubernetes_pod_label_app_kubernetes_io_name": name,
        "__meta_kubernetes_pod_label_batch_kubernetes_io_job_name": "gfgw-cifar10",
        "__meta_kubernetes_pod_label_batch_kubernetes_io_job_completion_index": "0",
        "__meta_kubernetes_pod_container_port_name": "http",
        "__meta_kubernetes_pod_phase": "Running",
    }
    assert relabelled(job, pod) == {"instance": "gfgw-cifar10-0", "namespace": "research"}
    for meta, value in {"pod_phase": "Failed", "pod_container_port_name": "rendezvous"}.items():
        assert relabelled(job, {**pod, f"__meta_kubernetes_{meta}": value}) is None

    # Debian's promtool does not support Kubernetes.
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    (tmp_path / "scrape.yml").write_text(yaml.safe_dump(config))
    promtool("check", "config", "scrape.yml", cwd=tmp_path)


def test_every_alert_has_a_receiver_and_a_section_of_the_runbook() -> None:
    subprocess.run(["amtool", "check-config", str(monitoring.DOCKER / "alertmanager" / "alertmanager.yml")], check=True)
    routes = yaml.safe_load((monitoring.DOCKER / "alertmanager" / "alertmanager.yml").read_text())
    receivers = {each["name"] for each in routes["receivers"]}
    sections = re.findall("^## (.*)$", (runs.ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert sections == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["labels"]["severity"] in receivers
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_queries_use_metrics_that_exist(tmp_path: Path) -> None:
    exposed = {metric.exposed for metric in CATALOGUE} | OF_CLIENT
    queries = [*expressions(), *(rule["expr"] for rule in RULES)]
    for query in queries:
        assert not re.search(rf"\b(i?rate|i?delta|increase)\({FALLING}", query), query
        assert set(re.findall(r"\b(?:gfgw|process)_[a-z_]+|\bup\b|\bALERTS\b", query)) <= exposed, query
    recorded = [{"record": f"dashboard:{number}", "expr": query} for number, query in enumerate(expressions())]
    (tmp_path / "dashboard.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", "dashboard.yml", cwd=tmp_path)


class Nodes:
    """Two nodes of one job on this machine; the first hosts the rendezvous."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.ports = [runs.free_port(), runs.free_port()]
        self.variables = copies.slowed(directory, 0.1) | {
            "NNODES": "1:2",
            "NPROC": "1",
            "LOCAL_ADDR": "localhost",
            "RDZV_LAST_CALL": "2",
            "RDZV_ENDPOINT": f"localhost:{runs.free_port()}",
        }
        self.agents: list[subprocess.Popen[str]] = []

    def start(self, number: int) -> subprocess.Popen[str]:
        """Start the agent of a node."""
        options = ("--telemetry.prometheus-port", str(self.ports[number]), "--checkpoint.every-kimg", "0.32")
        measured = ("--evaluation.every-kimg", "1.6", "--evaluation.num", "50", "--evaluation.metrics", runs.METRICS)
        command = runs.elastic(self.directory / "run", *runs.SMALL, *options, *measured, steps=1_000_000)
        with (self.directory / f"node-{number}.log").open("a") as log:
            self.agents.append(runs.start(command, self.variables, output=log))
        return self.agents[-1]

    def end(self) -> None:
        """Kill the agents. Ranks end with their agent."""
        for agent in self.agents:
            agent.kill()
            agent.wait()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    found = Nodes(tmp_path)
    yield found
    found.end()


@pytest.mark.timeout(900)
def test_crashed_rank_and_lost_node_fire_alerts_within_a_minute_until_they_return(nodes: Nodes, tmp_path: Path) -> None:
    with monitoring.Monitoring(tmp_path, nodes.ports) as watched:

        def ranks() -> float:
            return max((float(each["value"][1]) for each in watched.query("gfgw_world_size")), default=0)

        nodes.start(0)
        lost = nodes.start(1)
        begun = "gfgw_checkpoint_saves_total > 0 and on(instance) gfgw_evaluation_seconds"
        watched.wait_for(lambda: ranks() == 2 and watched.query(begun), 120)
        assert watched.alerts() == {}

        (rank,) = runs.workers_of(lost.pid).values()
        os.kill(rank, signal.SIGKILL)
        fired_after = watched.wait_for(lambda: "GfgwRankCrashed" in watched.alerts(), 60)
        alert = watched.alerts()["GfgwRankCrashed"]
        assert [each["name"] for each in alert["receivers"]] == ["ticket"]
        print(f"crash alert after {fired_after:.0f} s")
        watched.wait_for(lambda: ranks() == 2 and watched.alerts() == {}, 240)

        lost.kill()
        watched.wait_for(lambda: ranks() == 1, 240)  # the others notice, form a new group and go on
        fired_after = watched.wait_for(lambda: "GfgwRankMissing" in watched.alerts(), 60)
        alert = watched.alerts()["GfgwRankMissing"]
        assert [each["name"] for each in alert["receivers"]] == ["page"]
        assert "trains on 1 ranks" in alert["annotations"]["summary"]
        assert ranks() == 1
        print(f"loss alert after {fired_after:.0f} s")

        nodes.start(1)
        watched.wait_for(lambda: ranks() == 2 and "GfgwRankMissing" not in watched.alerts(), 240)
        restarts = watched.query("sum by (cause) (gfgw_restarts_total) > 0")
        assert {each["metric"]["cause"] for each in restarts} <= {"killed", "error", "membership"}
        assert sum(float(each["value"][1]) for each in restarts) == 3

        # The losses have no weight in this run, the figures no network.
        assert absent_from(watched.series()) == {
            "loss/lpips",
            "evaluation/fid",
            "evaluation/fd_dinov2",
        }
        instance = f"127.0.0.1:{nodes.ports[0]}"
        empty = [
            query
            for query in expressions()
            if not watched.query(f"last_over_time(({query.replace('INSTANCE', instance)})[5m:1s])")
        ]
        # Without GPUs and networks, and in the first hour of a run.
        unexpected = [query for query in empty if not re.search("gpu_memory|fid|fd_dinov2|offset 1h", query)]
        assert unexpected == []


def absent_from(series: list[dict[str, str]]) -> set[str]:
    """Tags of the catalogue without any sample."""

    def is_there(name: str, labels: dict[str, str], by: str) -> bool:
        return any(
            each["__name__"] == name and labels.items() <= each.items() and (not by or by in each) for each in series
        )

    wanted: list[Any] = [each for each in CATALOGUE if each.when != GPU or torch.cuda.is_available()]
    return {each.tag for each in wanted if not is_there(each.exposed, each.labels, each.by)}
