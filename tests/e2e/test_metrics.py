"""Every metric of docs/metrics.md lives on every process, from the start and under load."""

import live
import metrics_doc
import pytest


@pytest.mark.skipif(not live.available(), reason="needs the Debian package prometheus")
def test_pages_are_as_documented_before_any_request(make_cluster):
    cluster = make_cluster()
    assert live.page_problems(cluster.metrics_targets) == []


@pytest.mark.skipif(not live.available(), reason="needs the Debian package prometheus")
def test_pages_dashboard_and_alerts_under_load(make_cluster):
    cluster = make_cluster()
    with live.Prometheus(cluster.metrics_targets) as prometheus:
        for i in range(4):
            session = cluster.chat(f"hello {i}").session
            cluster.chat("go on", session=session)
            cluster.park(session)
            cluster.chat("and on", session=session)
        prometheus.wait_for_scrapes(5)
        assert live.problems(prometheus) == []
    assert live.page_problems(cluster.metrics_targets) == []


def test_tokens_by_source_sum_to_the_prompts(make_cluster):
    cluster = make_cluster()
    turns = []
    for i in range(3):
        first = cluster.chat(f"hello {i} " * 8)
        turns += [first, cluster.chat("go on", session=first.session)]
    by_worker = {w: [t for t in turns if t.worker == w] for w in ("w1", "w2")}
    for worker, own in by_worker.items():
        source = "loopserve_prompt_tokens_by_source_total"
        assert cluster.metric(worker, "loopserve_prompt_tokens_total") == sum(t.usage.prompt_tokens for t in own)
        assert cluster.metric(worker, source, source="computed") == sum(t.usage.computed_tokens for t in own)
        assert cluster.metric(worker, source) == sum(t.usage.prompt_tokens for t in own)
        assert cluster.metric(worker, "loopserve_generation_tokens_total") == sum(
            t.usage.completion_tokens for t in own)
    assert {"router", "worker", "kvstore"} == {p.removeprefix("loopserve-") for p in metrics_doc.PROCESSES}
