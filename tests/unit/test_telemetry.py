"""Metrics: the catalogue, and what every sink makes of a record."""

import json
import re
import resource
import time
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from docs.metrics_page import page
from gfgw_prod.distributed.world import World
from gfgw_prod.settings import reading
from gfgw_prod.telemetry.catalogue import BY_TAG, CATALOGUE
from gfgw_prod.telemetry.exposition import AGE, BUILD, Prometheus, show_live
from gfgw_prod.telemetry.health import Health
from gfgw_prod.telemetry.layout import CHARTS, COMPARED_METRICS, COMPARED_SETTINGS
from gfgw_prod.telemetry.node import NodeTelemetry
from gfgw_prod.telemetry.sinks import JsonLines, Telemetry, TensorBoard, last_recorded_step
from gfgw_prod.telemetry.startup import Startup
from gfgw_prod.training.reporting import Reporter

from ..process.runs import free_port

TAGS = {metric.prometheus: metric.tag for metric in CATALOGUE}


def test_tags_are_unique() -> None:
    assert len({metric.tag for metric in CATALOGUE}) == len(CATALOGUE)


def test_prometheus_names_follow_its_conventions() -> None:
    for metric in CATALOGUE:
        assert re.fullmatch(r"gfgw_[a-z][a-z_]*[a-z]", metric.prometheus)
        own = ("_total", "_count", "_sum", "_bucket", "_created", "_info")  # the client's
        assert not metric.prometheus.endswith(own)
        assert not re.search(r"_(milliseconds|minutes|hours|kilobytes|megabytes|percent|kimg)(_|$)", metric.prometheus)
        assert metric.help.endswith(".")
        assert "|" not in metric.help


def test_metrics_of_one_name_are_one_family() -> None:
    for metric in CATALOGUE:
        family = [other for other in CATALOGUE if other.prometheus == metric.prometheus]
        assert {(other.kind, other.help, tuple(other.labels), other.measured_in) for other in family} == {
            (metric.kind, metric.help, tuple(metric.labels), metric.measured_in)
        }
        assert len({tuple(other.labels.values()) for other in family}) == len(family)


def test_documented_metrics_are_those_of_the_catalogue() -> None:
    documented = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert documented.read_text(encoding="utf-8") == page(), "run make docs"
    for metric in CATALOGUE:
        assert f"`{metric.exposed}`" in documented.read_text(encoding="utf-8")


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


def test_garbage_after_a_power_loss_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    write_records(path, [1, 2])
    path.write_bytes(path.read_bytes().rstrip(b"\n") + b"\n\xff\x80\0\0")
    write_records(path, [3], first_step=2)
    assert [record["step"] for record in records(path)] == [1, 2, 3]


def test_record_without_a_final_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    write_records(path, [1, 2])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    write_records(path, [3], first_step=2)
    assert [record["step"] for record in records(path)] == [1, 2, 3]


def test_last_recorded_step_is_that_of_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    assert last_recorded_step(path) == 0
    write_records(path, list(range(1, 3001)))  # longer than the part that is read
    assert last_recorded_step(path) == 3000
    path.write_text(path.read_text() + '{"step": 3001, "ima')
    assert last_recorded_step(path) == 3000


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def scrape(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, tuple(s.labels.items())): s.value for family in families for s in family.samples}


def test_live_gauges_are_computed_for_every_page(registry: CollectorRegistry) -> None:
    evaluating = [0.0]
    show_live(registry, {"run/started": lambda: 1.0, "run/evaluating": lambda: evaluating[0]})
    assert scrape(registry) == {("gfgw_started", ()): 1, ("gfgw_evaluating", ()): 0}
    evaluating[0] = 1.0
    assert scrape(registry)["gfgw_evaluating", ()] == 1


def test_page_has_every_metric_with_its_value(registry: CollectorRegistry) -> None:
    sink = Prometheus(registry, saved_at=time.time(), build={"version": "1.2.3"})
    settable = [metric for metric in CATALOGUE if metric.tag not in (AGE, BUILD)]
    found = {metric.tag: float(number) for number, metric in enumerate(settable, start=1)}
    sink.record(1, 10, {tag: [0.0, value] if BY_TAG[tag].by else value for tag, value in found.items()})
    served = scrape(registry)
    for number, metric in enumerate(settable, start=1):
        name = metric.prometheus + ("_total" if metric.kind == "counter" else "")
        labels = (*metric.labels.items(), *([(metric.by, "1")] if metric.by else []))
        assert served[name, labels] == number
    assert ("gfgw_checkpoint_age_seconds", ()) in served
    assert served["gfgw_build_info", (("version", "1.2.3"),)] == 1


def test_gauge_appears_once_known_and_a_counter_begins_at_zero(registry: CollectorRegistry) -> None:
    sink = Prometheus(registry, saved_at=time.time(), known={"run/lost_images": 96.0, "run/world_size": 2.0})
    served = scrape(registry)
    assert served["gfgw_lost_images_total", ()] == 96
    assert served["gfgw_world_size", ()] == 2
    assert served["gfgw_restarts_total", (("cause", "killed"),)] == 0
    assert served["gfgw_checkpoint_failures_total", ()] == 0
    assert ("gfgw_gradient_norm", ()) not in served
    sink.record(1, 10, {"optimizer/gradient_norm": 0.0, "run/hardware_errors": [0.0, 1.0]})
    assert scrape(registry)["gfgw_gradient_norm", ()] == 0
    sink.record(2, 20, {"run/hardware_errors": [1.0, 0.0]})
    served = scrape(registry)
    assert [served["gfgw_hardware_errors_total", (("rank", rank),)] for rank in "01"] == [1, 1]


def test_age_counts_from_the_last_save(registry: CollectorRegistry) -> None:
    sink = Prometheus(registry, saved_at=time.time() - 1000)
    assert scrape(registry)["gfgw_checkpoint_age_seconds", ()] >= 1000
    sink.record(1, 10, {TAGS["gfgw_checkpoint_saves"]: 1})
    assert scrape(registry)["gfgw_checkpoint_age_seconds", ()] < 1000


def test_checkpoint_age_of_a_resumed_run_counts_from_this_start(tmp_path: Path, alone: World) -> None:
    config = reading.resolve({"run": {"dir": str(tmp_path)}, "telemetry": {"prometheus_port": free_port()}})
    node = NodeTelemetry(config.telemetry, Health(600, lambda: 0.0), is_first=True)
    reporter = Reporter(config, alone, Startup(), node)
    node.listen()
    reporter.open(7, {"saved_at": time.time() - 1e6}, damaged=0)
    assert node.registry is not None
    age = node.registry.get_sample_value("gfgw_checkpoint_age_seconds")
    reporter.close()
    assert age is not None
    assert 0 <= age < 1e5


def test_counters_do_not_go_backwards(registry: CollectorRegistry) -> None:
    sink = Prometheus(registry, saved_at=time.time())
    seen = []
    for images in (100, 250, 180, 200, 300):
        sink.record(images // 10, images, {TAGS["gfgw_images_seen"]: float(images)})
        seen.append(scrape(registry)["gfgw_images_seen_total", ()])
    assert seen[:2] == [100, 250]
    assert seen == sorted(seen)


def test_resumed_curves_hide_records_after_the_checkpoint(tmp_path: Path) -> None:
    lost = TensorBoard(tmp_path, 0)
    for images in (100, 200, 300):
        lost.record(1, images, {"loss/total": 1.0})
    lost.close()
    resumed = TensorBoard(tmp_path, 200)
    resumed.record(1, 250, {"loss/total": 2.0})
    resumed.picture(250, "samples", torch.zeros(3, 4, 4, dtype=torch.uint8))
    resumed.close()
    curves = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in curves.Scalars("loss/total")] == [(100, 1), (200, 1), (250, 2)]
    assert [event.step for event in curves.Images("samples")] == [250]


@pytest.mark.parametrize("behind", [0.0, 1.0, 3600.0])
def test_curves_are_whole_where_the_clock_is_behind_that_of_an_earlier_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: float
) -> None:
    now, expected = time.time(), []
    for start in range(12):
        monkeypatch.setattr(time, "time", lambda start=start: now - behind * start)
        sink = TensorBoard(tmp_path, 100 * start)
        sink.record(1, 100 * start + 50, {"loss/total": float(start)})
        sink.record(2, 100 * start + 100, {"loss/total": float(start)})
        sink.record(3, 100 * start + 150, {"loss/total": -1.0})  # lost with the process
        sink.close()
        expected += [100 * start + 50, 100 * start + 100]
    curves = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in curves.Scalars("loss/total")] == [*expected, 1250]


def test_tensorboard_goes_on_in_a_new_file_after_a_failure(tmp_path: Path) -> None:
    lines: list[str] = []
    telemetry = Telemetry([TensorBoard(tmp_path, 0)], lines.append)
    telemetry.record(1, 10, {"loss/total": 1.0})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # bytes per file
    try:
        telemetry.record(2, 20, {"loss/total": 2.0})
        telemetry.record(3, 30, {"loss/total": 3.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    telemetry.record(4, 40, {"loss/total": 4.0})
    telemetry.close()
    curves = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in curves.Scalars("loss/total")] == [10, 40]
    assert len(lines) == 1


def test_tensorboard_groups_the_curves_and_shows_the_settings(tmp_path: Path) -> None:
    tags = [tag for charts in CHARTS.values() for chart in charts.values() for tag in chart]
    assert set(tags) <= BY_TAG.keys()
    assert len(set(tags)) == len(tags)
    for _ in range(2):  # a start, and one after it
        sink = TensorBoard(tmp_path, 0, reading.resolve({"train": {"total_kimg": 7}}).model_dump(mode="json"))
        sink.open()
        sink.close()
    summary = EventAccumulator(str(tmp_path)).Reload()
    stored = summary.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    shown = layout_pb2.Layout.FromString(stored)
    assert [category.title for category in shown.category] == list(CHARTS)
    patterns = [pattern for category in shown.category for chart in category.chart for pattern in chart.multiline.tag]
    assert [[tag for tag in BY_TAG if re.match(pattern, tag)] for pattern in patterns] == [[tag] for tag in tags]
    config = summary.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "    train:\n      total_kimg: 7.0\n" in config


def test_tensorboard_compares_the_settings_and_results_of_runs(tmp_path: Path) -> None:
    settings = reading.resolve({"train": {"total_kimg": 7}, "generator": {"channel_mult": [1, 2]}})
    sink = TensorBoard(tmp_path, 0, settings.model_dump(mode="json"))
    sink.record(1, 10, {"loss/total": 0.5, "evaluation/fd": 2.0, "data/batch_crc": 1e9})
    sink.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["loss/total", "evaluation/fd"]
    content = events.PluginTagToContent("hparams")
    start, experiment = (
        plugin_data_pb2.HParamsPluginData.FromString(content[tag])
        for tag in ("_hparams_/session_start_info", "_hparams_/experiment")
    )
    compared = start.session_start_info.hparams
    assert set(compared) == set(COMPARED_SETTINGS)
    assert compared["train.total_kimg"].number_value == 7
    assert compared["generator.channel_mult"].string_value == "[1, 2]"
    metrics = [metric.name.tag for metric in experiment.experiment.metric_infos]
    assert metrics == list(COMPARED_METRICS)
    assert set(metrics) <= BY_TAG.keys()


def test_telemetry_passes_records_to_all_sinks(tmp_path: Path, registry: CollectorRegistry) -> None:
    telemetry = Telemetry.open(tmp_path, [Prometheus(registry, saved_at=0.0)], step=0, images=0)
    telemetry.record(2, 20, {"loss/total": 0.25})
    served = scrape(registry)
    telemetry.close()
    assert served["gfgw_loss", (("term", "total"),)] == 0.25
    assert records(tmp_path / "stats.jsonl")[0]["loss/total"] == 0.25
    assert EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss/total")[0].step == 20


def test_value_outside_the_catalogue_does_not_end_a_run(tmp_path: Path, registry: CollectorRegistry) -> None:
    telemetry = Telemetry.open(tmp_path, [Prometheus(registry, saved_at=0.0)], step=0, images=0)
    telemetry.record(1, 10, {"loss/total": 0.5, "loss/other": 1.0})  # tests/unit/test_catalogue.py would find it
    telemetry.close()
    assert scrape(registry)["gfgw_loss", (("term", "total"),)] == 0.5
    assert records(tmp_path / "stats.jsonl")[0]["loss/other"] == 1.0
