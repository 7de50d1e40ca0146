"""Makes metrics.md from the table of metrics in the code.

Run as `python docs/generate_metrics.py` after a change of a metric.
"""

from __future__ import annotations

from pathlib import Path

from trunkline.server.metric_table import METRICS, MetricSpec, Source

HERE = Path(__file__).parent

HEAD = """\
# Metrics

<!-- Made by docs/generate_metrics.py from the code; a test compares the two. -->

`GET /metrics` gives them in Prometheus's text format and asks for no key. They name no project, no
key, no file and no batch; who must not see models and engines should not reach the path.

Names and labels are stable. [The dashboard](grafana/trunkline.json) for Grafana shows all of them;
import it and choose the data source.

With several servers on one store:

- each server counts its own HTTP requests and background work: add them up, as in
  `sum(rate(trunkline_http_requests_total[5m]))`;
- every server tells the same of store and engines: take one, as in `max(trunkline_batches) by
  (status)`, not the sum. The store is read at most once in five seconds by each server, and less
  often when reading takes long.

Alerts that are always worth having: `max(trunkline_engine_alive) by (engine) == 0` and
`min(trunkline_store_up) == 0`.
"""

NOTES = {
    Source.HTTP: "`route` is the route's template, such as `/v1/batches/{batch_id}`, or\n"
    "`unmatched`; `status_class` is `2xx` to `5xx`, `status` the number itself.",
    Source.JOBS: "`kind` is `validate` or `finalize`.",
    Source.STORE: "`model` is the name that requests use.",
    Source.ENGINES: "`engine` is the engine's name, `device` what it computes on. Counters begin "
    "at 0 with the engine.",
}

TABLE_HEAD = """\
| metric | type | labels | meaning |
|---|---|---|---|
"""


def metrics_page() -> str:
    """The text of metrics.md."""
    sections = [HEAD]
    for source in Source:
        rows = "".join(_row(spec) for spec in METRICS if spec.source is source)
        note = f"{NOTES[source]}\n\n" if source in NOTES else ""
        sections.append(f"## {source.value}\n\n{note}{TABLE_HEAD}{rows}")
    return "\n".join(sections)


def _row(spec: MetricSpec) -> str:
    labels = ", ".join(f"`{label}`" for label in spec.labels) or "none"
    meaning = spec.help
    if spec.buckets:
        bounds = ", ".join(f"{bound:g}" for bound in spec.buckets)
        meaning += f" Buckets up to {bounds} s."
    return f"| `{spec.name}` | {spec.kind.value} | {labels} | {meaning} |\n"


if __name__ == "__main__":
    (HERE / "metrics.md").write_text(metrics_page(), encoding="utf-8")
