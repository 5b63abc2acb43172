"""docs/metrics.md can be read, and reading it notices every way a process can differ from it."""

import fake_exporter
import metrics_doc
import pytest


def test_names_follow_the_rules():
    for name, metrics in metrics_doc.known().items():
        assert name.startswith(("loopserve_", "process_")), name
        assert {m.type for m in metrics} <= {"counter", "gauge", "histogram"}, name
        assert len({m.type for m in metrics}) == 1, f"{name} has two types"
        for metric in metrics:
            assert name.endswith("_total") == (metric.type == "counter"), name
            assert bool(metric.buckets) == (metric.type == "histogram"), name
            assert not {"session", "session_id", "request_id", "user", "tenant"} & set(metric.labels), name


@pytest.mark.parametrize("process", metrics_doc.PROCESSES)
def test_a_page_that_follows_the_table_is_right(process):
    assert metrics_doc.problems(process, fake_exporter.render(process, 3)) == []


@pytest.mark.parametrize("edit, complaint", [
    (lambda t: t.replace('code="INTERNAL"', 'code="OOPS"'), "undocumented series"),
    (lambda t: "\n".join(l for l in t.splitlines() if 'code="INTERNAL"' not in l) + "\n", "lacks the series"),
    (lambda t: t.replace("loopserve_directory_sessions", "loopserve_directory_session"), "documented but not exported"),
    (lambda t: t + "# TYPE loopserve_new gauge\nloopserve_new 1\n", "loopserve_new is exported but not documented"),
    (lambda t: t.replace("TYPE loopserve_worker_up gauge", "TYPE loopserve_worker_up counter"), "is a counter"),
    (lambda t: t.replace('method="Turn",stream="true"', 'method="Turn",stream="false"'), "undocumented series"),
])
def test_a_page_that_differs_is_noticed(edit, complaint):
    page = fake_exporter.render("loopserve-router", 3)
    assert edit(page) != page
    assert any(complaint in p for p in metrics_doc.problems("loopserve-router", edit(page)))
