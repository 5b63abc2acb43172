"""Every panel, variable, recording rule and alert asks for something that exists.

Against the processes named in LOOPSERVE_METRICS_TARGETS=job=host:port,... (under load), else against
an exporter that serves what docs/metrics.md lists. Suites that start a cluster call live.py itself.
"""

import os

import fake_exporter
import live
import pytest
import queries

pytestmark = pytest.mark.skipif(not live.available(), reason="needs the Debian package prometheus")


@pytest.fixture(scope="module")
def targets():
    given = os.environ.get("LOOPSERVE_METRICS_TARGETS")
    if given:
        yield live.from_environment(given)
        return
    with fake_exporter.FakeCluster() as cluster:
        yield cluster.metrics_targets


@pytest.fixture(scope="module")
def prometheus(targets):
    with live.Prometheus(targets) as server:
        server.wait_for_scrapes(4)
        yield server


def test_every_query_finds_live_series(prometheus):
    assert live.problems(prometheus) == []


def test_every_page_is_what_the_document_says(targets):
    assert live.page_problems(targets) == []


@pytest.mark.parametrize("query, complaint", [
    (queries.Query("q", "sum(rate(loopserve_no_such_total[5m]))"), "no series"),
    (queries.Query("q", "sum(rate(loopserve_requests_total[5m])"), "does not parse"),
    (queries.Query("q", "sum(loopserve_worker_up)", "{{worker}}"), "the legend names worker"),
    (queries.Query("q", "rate(loopserve_worker_up[10s])"), "rate-like function over loopserve_worker_up, a gauge"),
    (queries.Query("q", "deriv(loopserve_requests_total[10s])"), "deriv-like function"),
    (queries.Query("q", "loopserve_no_such > 0.5", kind="alert"), "no series"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_wrong_queries_are_noticed(prometheus, monkeypatch, query, complaint):
    monkeypatch.setattr(queries, "all_queries", lambda: [query])
    assert any(complaint in p for p in live.problems(prometheus))
