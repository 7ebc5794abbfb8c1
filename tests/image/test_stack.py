"""The stack of `make up`, without Grafana: its services find each other, and a restart keeps their data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from ..process import monitoring
from .stack import PORTS, SERVICES, Stack, require

pytestmark = pytest.mark.timeout(1500)
RULES = [rule["alert"] for rule in yaml.safe_load(monitoring.RULES.read_text())["groups"][0]["rules"]]


@pytest.fixture
def stack(image: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    require()
    with Stack(tmp_path_factory.mktemp("stack")) as found:
        yield found


def test_services_find_each_other_on_loopback_only_and_resume_after_a_restart(stack: Stack) -> None:
    stack.compose("up", "--detach", *SERVICES)
    for service, port in PORTS.items():
        assert stack.compose("port", service, str(port)).strip() == f"127.0.0.1:{stack.ports[service]}"

    stack.wait_for(lambda: stack.query('gfgw_steps_total{job="gfgw", instance="trainer:9100"} > 0'))
    stack.wait_for(lambda: stack.query('up{job="prometheus"} == 1'))
    (group,) = stack.get("prometheus", "/api/v1/rules")["data"]["groups"]
    assert [rule["name"] for rule in group["rules"]] == RULES
    stack.wait_for(lambda: stack.alertmanagers() == ["http://alertmanager:9093/api/v2/alerts"])
    assert stack.get("alertmanager", "/api/v2/alerts") == []
    stack.wait_for(lambda: stack.get("tensorboard", "/data/runs") == ["digits/tensorboard"])

    stack.make("down")
    assert stack.compose("ps", "--quiet").split() == []
    assert stack.get("trainer", "/live") is None

    # podman sometimes loses their output.
    stack.make("compose", "run --rm trainer sample runs/digits --num 64 --grid --out runs/digits/more-samples")
    assert (stack.volume("runs") / "digits" / "more-samples" / "grid.png").stat().st_size > 0
    stack.make("compose", "run --rm trainer inspect runs/digits")
    stack.make("compose", "run --rm trainer doctor")

    stack.compose("up", "--detach", "trainer", "prometheus")
    stack.wait_for(lambda: "resumed at " in stack.logs("trainer"))
    # Prometheus has kept its data, and the run is the same instance.
    stack.wait_for(lambda: stack.query('changes(process_start_time_seconds{instance="trainer:9100"}[10m]) == 1'))
