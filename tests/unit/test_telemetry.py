"""Metrics: one catalogue, read back from every sink."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gfgw_prod.config import TelemetrySettings
from gfgw_prod.telemetry import Telemetry
from gfgw_prod.telemetry.catalogue import BY_TAG, CATALOGUE
from gfgw_prod.telemetry.sinks import JsonLines, Prometheus, TensorBoard

TAGS = {metric.prometheus: metric.tag for metric in CATALOGUE}


def test_tags_are_unique() -> None:
    assert len({metric.tag for metric in CATALOGUE}) == len(CATALOGUE)


def test_prometheus_names_follow_its_conventions() -> None:
    for metric in CATALOGUE:
        assert re.fullmatch(r"gfgw_[a-z][a-z_]*[a-z]", metric.prometheus)
        assert not metric.prometheus.endswith(("_total", "_count", "_sum", "_bucket", "_created"))  # the client's own
        assert metric.help.endswith(".")


def test_metrics_of_one_name_are_one_family() -> None:
    for metric in CATALOGUE:
        family = [other for other in CATALOGUE if other.prometheus == metric.prometheus]
        assert {(other.kind, other.help, tuple(other.labels)) for other in family} == {
            (metric.kind, metric.help, tuple(metric.labels))
        }
        assert len({tuple(other.labels.values()) for other in family}) == len(family)


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_records(path: Path, steps: list[int], first_step: int = 0) -> None:
    sink = JsonLines(path, first_step)
    for step in steps:
        sink.record(step, step * 10, {"loss/total": step / 2})
    sink.close()


def test_records_are_json_lines(tmp_path: Path) -> None:
    write_records(tmp_path / "stats.jsonl", [1, 2])
    found = records(tmp_path / "stats.jsonl")
    assert [(r["step"], r["images"], r["loss/total"]) for r in found] == [(1, 10, 0.5), (2, 20, 1.0)]
    assert abs(found[0]["time"] - time.time()) < 600


def test_records_past_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    write_records(tmp_path / "stats.jsonl", [1, 2, 3, 4])
    write_records(tmp_path / "stats.jsonl", [3], first_step=2)
    assert [record["step"] for record in records(tmp_path / "stats.jsonl")] == [1, 2, 3]


def test_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    write_records(path, [1, 2])
    path.write_text(path.read_text() + '{"step": 2, "ima')
    write_records(path, [3], first_step=2)
    assert [record["step"] for record in records(path)] == [1, 2, 3]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def scrape(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, tuple(s.labels.items())): s.value for family in families for s in family.samples}


def test_page_has_every_metric_with_its_value(registry: CollectorRegistry) -> None:
    sink = Prometheus(registry, saved_at=time.time())
    settable = [metric for metric in CATALOGUE if metric.tag != TAGS["gfgw_checkpoint_age_seconds"]]
    found = {metric.tag: float(number) for number, metric in enumerate(settable, start=1)}
    sink.record(1, 10, {tag: [0.0, value] if BY_TAG[tag].by else value for tag, value in found.items()})
    served = scrape(registry)
    for number, metric in enumerate(settable, start=1):
        name = metric.prometheus + ("_total" if metric.kind == "counter" else "")
        labels = (*metric.labels.items(), *([(metric.by, "1")] if metric.by else []))
        assert served[name, labels] == number
    assert ("gfgw_checkpoint_age_seconds", ()) in served


def test_age_counts_from_the_last_save(registry: CollectorRegistry) -> None:
    sink = Prometheus(registry, saved_at=time.time() - 1000)
    assert scrape(registry)["gfgw_checkpoint_age_seconds", ()] >= 1000
    sink.record(1, 10, {TAGS["gfgw_checkpoint_saves"]: 1})
    assert scrape(registry)["gfgw_checkpoint_age_seconds", ()] < 1000


def test_counters_do_not_go_backwards(registry: CollectorRegistry) -> None:
    sink = Prometheus(registry, saved_at=time.time())
    seen = []
    for images in (100, 250, 180, 200, 300):
        sink.record(images // 10, images, {TAGS["gfgw_images_seen"]: float(images)})
        seen.append(scrape(registry)["gfgw_images_seen_total", ()])
    assert seen[:2] == [100, 250]
    assert seen == sorted(seen)


def test_resumed_curves_hide_what_a_lost_process_wrote(tmp_path: Path) -> None:
    lost = TensorBoard(tmp_path, 0)
    for images in (100, 200, 300):
        lost.record(1, images, {"loss/total": 1.0})
    lost.close()
    time.sleep(1.1)  # event files are named and read by the second
    resumed = TensorBoard(tmp_path, 200)
    resumed.record(1, 250, {"loss/total": 2.0})
    resumed.picture(250, "samples", torch.zeros(3, 4, 4, dtype=torch.uint8))
    resumed.close()
    curves = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in curves.Scalars("loss/total")] == [(100, 1), (200, 1), (250, 2)]
    assert [event.step for event in curves.Images("samples")] == [250]


def test_telemetry_hands_records_to_all_sinks(tmp_path: Path, registry: CollectorRegistry) -> None:
    settings = TelemetrySettings(progress="off")
    telemetry = Telemetry.open(settings, tmp_path, registry, step=0, images=0, total_images=100, saved_at=0.0)
    telemetry.record(2, 20, {"loss/total": 0.25})
    served = scrape(registry)
    telemetry.close()
    assert served["gfgw_loss", (("term", "total"),)] == 0.25
    assert records(tmp_path / "stats.jsonl")[0]["loss/total"] == 0.25
    assert EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss/total")[0].step == 20


def test_value_outside_the_catalogue_is_an_error() -> None:
    with pytest.raises(AssertionError, match="loss/other"):
        Telemetry([]).record(0, 0, {"loss/other": 1.0})
