"""The rendered manifests of `launch/kubernetes/`, and what a pod gets from them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import yaml

from . import runs

DIRECTORY = runs.ROOT / "launch" / "kubernetes"
CONFIG_PLACE = "/etc/gfgw/run.yaml"  # where a pod mounts its settings
KUBERNETES = "1.32"


def _missing() -> str:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return "kubectl is not installed"
    version = subprocess.run([kubectl, "version", "--client"], capture_output=True, text=True, check=False).stdout
    return "" if "Kustomize Version: v5" in version else "this kubectl has no kustomize 5 (Debian's own is too old)"


CANNOT = _missing()


class Manifests:
    """What `kubectl apply -k` would send."""

    def __init__(self, name: str):
        rendered = subprocess.run(
            ["kubectl", "kustomize", str(DIRECTORY / name)], capture_output=True, text=True, check=True, timeout=60
        )
        assert rendered.stderr == "", rendered.stderr  # a warning
        self.objects: list[dict[str, Any]] = list(yaml.safe_load_all(rendered.stdout))
        self.job = self.only("Job")
        self.spec = self.job["spec"]
        self.pod = self.spec["template"]["spec"]
        (self.trainer,) = self.pod["containers"]
        self.values = {each["name"]: each.get("value") for each in self.trainer["env"]}

    def only(self, kind: str) -> dict[str, Any]:
        """The one object of a kind."""
        (found,) = (each for each in self.objects if each["kind"] == kind)
        return found

    @property
    def settings(self) -> str:
        """The file of settings that pods find at ``CONFIG_PLACE``."""
        return str(self.only("ConfigMap")["data"]["run.yaml"])

    @property
    def nodes(self) -> int:
        """Most nodes of the job."""
        return int(self.values["NNODES"].split(":")[-1])

    @property
    def ranks(self) -> int:
        """Most ranks of the job."""
        return self.nodes * int(self.values["NPROC"])

    def page(self, probe: str) -> tuple[int, str]:
        """Port and path that a probe asks for."""
        asked = self.trainer[probe]["httpGet"]
        (port,) = (each["containerPort"] for each in self.trainer["ports"] if each["name"] == asked["port"])
        return port, asked["path"]

    def patience(self, probe: str) -> int:
        """Seconds of failure after which a probe acts."""
        return int(self.trainer[probe]["periodSeconds"] * self.trainer[probe]["failureThreshold"])

    def environment(self, namespace: str, address: str) -> dict[str, str]:
        """Variables of a pod in a namespace with an address: fields filled in, and names of earlier ones replaced."""
        fields = {
            "metadata.namespace": namespace,
            "metadata.labels['batch.kubernetes.io/job-name']": self.job["metadata"]["name"],
            "status.podIP": address,
        }
        found: dict[str, str] = {}
        for each in self.trainer["env"]:
            value = each["value"] if "value" in each else fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
            found[each["name"]] = re.sub(r"\$\((\w+)\)", lambda name: found.get(name[1], name[0]), value)
        return found

    def action(self, code: int, conditions: Mapping[str, str]) -> str:
        """The action of the Job for a failed pod: that of the first rule that fits."""
        for rule in self.spec["podFailurePolicy"]["rules"]:
            codes = rule.get("onExitCodes")
            if codes is not None:
                assert codes["containerName"] == self.trainer["name"]
                fits = (code in codes["values"]) == (codes["operator"] == "In")
            else:
                fits = any(conditions.get(each["type"]) == each["status"] for each in rule["onPodConditions"])
            if fits:
                return str(rule["action"])
        return "Count"
