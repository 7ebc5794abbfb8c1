"""``python -m docs.metrics_page``: prints the page ``docs/metrics.md``, made from the catalogue."""

from __future__ import annotations

from itertools import groupby

from gfgw_prod.telemetry.catalogue import CATALOGUE
from gfgw_prod.telemetry.metric import Metric

HEAD = """\
# Metrics

<!-- Made by `make docs` from gfgw_prod/telemetry/catalogue.py: change it there. -->

`--telemetry.prometheus-port 9100` serves these on `http://127.0.0.1:9100/metrics`, on the node of rank 0; on any other
node there are only `gfgw_started`, `gfgw_evaluating` and the `process_` metrics of the Prometheus client. The tag is
the name of the same number in TensorBoard, over images seen, and in `stats.jsonl`, at `telemetry.log_every_kimg`. What
is by rank is a list in `stats.jsonl` and is not in TensorBoard.

Names follow Prometheus: base units, `_total` for counters. A gauge is there once its value is known; a counter begins
at zero. Counters of a whole run go on where they were when it is started again. Values are those of the last record;
`gfgw_checkpoint_age_seconds` is that of the moment it is asked for. The label `rank` has as many values as the run has
ranks, every other a fixed few.

Two hundred scrapers that come every ten seconds take 0.4 to 0.6 % of one core, every second 3.4 %, without a pause
29 %; one takes 0.1 % (`make bench ARGS=scraping`, on a busy machine): a page is made once a second, whoever asks. A
step of the digits run took 0.99 times as long with two hundred every ten seconds and a malformed request a second as
without (0.88 to 1.07 in five turns), which is noise.

Nothing is measured for the sake of a metric while a step runs but the host's clock, read seven times; numbers of the
device are fetched with a record. What to do when one of them is out of the ordinary: [runbook.md](runbook.md).
"""
COLUMNS = ("metric", "type", "unit", "labels", "what", "tag", "there")


def page() -> str:
    """The page as Markdown."""
    rows = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    by_name = {name: list(family) for name, family in groupby(CATALOGUE, key=lambda metric: metric.prometheus)}
    assert sum(map(len, by_name.values())) == len(CATALOGUE), "metrics of one name stand together"
    rows += [_row(family) for family in by_name.values()]
    return HEAD + "\n" + "\n".join(rows) + "\n"


def _row(family: list[Metric]) -> str:
    first = family[0]
    labels = [f"`{name}`: " + ", ".join(each.labels[name] for each in family) for name in first.labels]
    labels += [f"`{first.by}`"] if first.by else []
    tags = [each.tag for each in family]
    tag = tags[0] if len(tags) == 1 else tags[0].rpartition("/")[0] + "/…"
    conditions = {each.when for each in family}
    there = (
        first.when
        if len(conditions) == 1
        else "; ".join(f"{'/'.join(each.labels.values())} {each.when}" for each in family if each.when)
    )
    cells = (f"`{first.exposed}`", first.kind, first.measured_in, "; ".join(labels), first.help, f"`{tag}`", there)
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    print(page(), end="")
