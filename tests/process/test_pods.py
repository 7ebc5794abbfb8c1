"""The Job's pods as two hosts: they run what the manifests start, in the environment that a kubelet gives a pod."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gfgw_prod.process.exit_codes import PREEMPTED

from . import manifests, runs
from .two_hosts import CANNOT, TwoHosts

NO_CURL = "" if shutil.which("curl") else "curl is not installed"
MISSING = manifests.CANNOT or CANNOT or NO_CURL
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


class Pods:
    """Pods 0 and 1 of a Job on two hosts. There is no DNS: a pod knows its own name, and pod 1 that of pod 0."""

    def __init__(self, net: TwoHosts, rendered: manifests.Manifests, directory: Path):
        self.net, self.rendered, self.directory = net, rendered, directory
        (directory / "run.yaml").write_text(rendered.settings)
        own = [self._line(index) for index in (0, 1)]
        for index, known in enumerate([own[:1], own]):
            hosts = Path("/etc/netns") / net.names[index] / "hosts"
            hosts.write_text("\n".join(["127.0.0.1\tlocalhost", *known, ""]))

    def _line(self, index: int) -> str:
        """The line that a kubelet writes into a pod's /etc/hosts."""
        name, service = self.rendered.job["metadata"]["name"], self.rendered.pod["subdomain"]
        own = f"{name}-{index}"
        return f"{self.net.addresses[index]}\t{own}.{service}.research.svc.cluster.local\t{own}"

    def start(self, index: int, *options: str) -> subprocess.Popen[str]:
        """Start the image's entry point with the Job's arguments and some more."""
        place = {manifests.CONFIG_PLACE: str(self.directory / "run.yaml")}
        arguments = [place.get(each, each) for each in self.rendered.trainer["args"]]
        name = f"{self.rendered.job['metadata']['name']}-{index}"
        command = f'hostname {name}; cd {runs.ROOT}; exec docker/entrypoint.sh "$@"'
        variables = self.rendered.environment("research", self.net.addresses[index])
        return self.net.start(index, ["sh", "-c", command, "sh", *arguments, *options], variables)

    def get(self, index: int, path: str, port: int) -> tuple[int, str]:
        """Get a page of a pod from the other host: status and body; status 0 if the port is closed."""
        url = f"http://{self.net.addresses[index]}:{port}{path}"
        asked = [
            "ip",
            "netns",
            "exec",
            self.net.names[1 - index],
            "curl",
            "--noproxy",
            "*",
            "-s",
            "-w",
            "\n%{http_code}",
        ]
        found = subprocess.run([*asked, "--max-time", "20", url], capture_output=True, text=True, check=False)
        body, _, status = found.stdout.rpartition("\n")
        return int(status), body

    def probed(self, index: int, probe: str) -> tuple[int, dict[str, Any]]:
        """Status and body that a probe of a pod gets."""
        port, path = self.rendered.page(probe)
        status, body = self.get(index, path, port)
        return status, json.loads(body) if status else {}


def test_pods_meet_train_together_and_answer_their_probes_until_they_are_evicted(tmp_path: Path) -> None:
    rendered = manifests.Manifests("base")
    with TwoHosts() as net:
        pods = Pods(net, rendered, tmp_path)
        options = ("--run.dir", str(tmp_path / "run"), "--train.total-kimg", "100000")
        trainers = [pods.start(index, *options) for index in (0, 1)]
        try:

            def both_train() -> bool:
                return all(pods.probed(index, "readinessProbe")[0] == 200 for index in (1, 0))

            runs.wait_until(both_train, trainers[0])
            for index in (0, 1):
                for probe in ("startupProbe", "livenessProbe"):
                    assert pods.probed(index, probe)[0] == 200
            port, _ = rendered.page("livenessProbe")
            runs.wait_until(lambda: "\ngfgw_world_size 2.0\n" in pods.get(0, "/metrics", port)[1], trainers[0])
            other = pods.get(1, "/metrics", port)[1]
            assert "\nprocess_resident_memory_bytes " in other
            metrics = {line.split()[0] for line in other.splitlines() if line.startswith("gfgw_")}
            assert metrics == {"gfgw_started", "gfgw_evaluating"}  # only rank 0 exports the metrics of the run

            for trainer in trainers:
                trainer.terminate()
            assert [runs.outcome_of(trainer).code for trainer in trainers] == [PREEMPTED, PREEMPTED]
        finally:
            for trainer in trainers:
                trainer.kill()
