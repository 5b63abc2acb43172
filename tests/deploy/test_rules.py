"""What is in deploy/: rules, dashboards, compose file and images, judged without running them."""

import json
import re
import subprocess

import metrics_doc
import pytest
import queries
import yaml

ROOT = metrics_doc.ROOT
PROMETHEUS = ROOT / "deploy/prometheus"
DASHBOARDS = [pytest.param(json.loads(p.read_text()), id=p.name) for p in queries.DASHBOARDS]
UNITS = {"short", "s", "bytes", "Bps", "reqps", "cps", "percentunit", "suffix: tok/s"}


@pytest.mark.parametrize("command", [
    ["check", "config", "prometheus.yml"],
    ["check", "rules", "rules.yml", "alerts.yml"],
    ["test", "rules", "rules_test.yml"],
], ids=" ".join)
def test_promtool(command):
    run = subprocess.run(["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_has_a_summary_a_runbook_section_and_a_firing_test():
    runbook = (ROOT / "docs/runbook.md").read_text()
    sections = {title.lower() for title in re.findall(r"^## (\w+)$", runbook, re.M)}
    cases = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    fired = {c["alertname"] for t in cases for c in t.get("alert_rule_test", []) if c["exp_alerts"]}
    names = [alert["alert"] for alert in queries.rules(queries.ALERTS)]
    assert len(names) == len(set(names))
    for alert in queries.rules(queries.ALERTS):
        name = alert["alert"]
        assert alert["labels"]["severity"] in ("info", "warning", "critical"), name
        assert alert["annotations"]["summary"], name
        assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}", name
        assert name.lower() in sections, f"docs/runbook.md has no section on {name}"
        assert name in fired, f"rules_test.yml never sees {name} fire"
    assert sections == {n.lower() for n in names}, "docs/runbook.md has sections on alerts that do not exist"


def query_problems(expr, documented, recorded):
    found = []
    for name, matchers in queries.selectors(expr):
        if name == "up" or name in recorded:
            continue
        metrics = documented.get(metrics_doc.base_name(name, documented))
        if not metrics:
            found.append(f"docs/metrics.md has no {name}")
            continue
        for label, operator, value in matchers:
            if label in queries.TARGET_LABELS:
                continue
            having = [m for m in metrics if label in m.labels]
            if not having:
                found.append(f"{name} has no label {label}")
            elif operator in ("=", "=~") and "$" not in value and having[0].values(label) is not None:
                wanted = value.split("|") if operator == "=~" else [value]
                known = set().union(*(m.values(label) for m in having))
                found += [f"{name}: {label} is never {v!r}" for v in wanted if v not in known]
    return found


RECORDED = {r["record"] for r in queries.rules(queries.RULES)}


@pytest.mark.parametrize("query", queries.all_queries(), ids=lambda q: q.where)
def test_queries_use_only_what_is_exported(query):
    assert queries.selectors(query.expr), f"no metric found in {query.expr}"
    assert query_problems(query.expr, metrics_doc.known(), RECORDED) == []


@pytest.mark.parametrize("expr, complaint", [
    ("rate(loopserve_request_total[5m])", "docs/metrics.md has no loopserve_request_total"),
    ('loopserve_kv_used_bytes{tier="tape"}', "tier is never 'tape'"),
    ('loopserve_worker_up{model="m"}', "has no label model"),
    ("loopserve:unknown:ratio > 1", "docs/metrics.md has no loopserve:unknown:ratio"),
])
def test_wrong_queries_are_noticed(expr, complaint):
    assert any(complaint in p for p in query_problems(expr, metrics_doc.known(), RECORDED))


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_dashboard_form(dashboard):
    assert dashboard["id"] is None and dashboard["uid"], "a fixed uid and no id make it importable anywhere"
    assert dashboard["schemaVersion"] >= 39
    variables = {v["name"]: v["type"] for v in dashboard["templating"]["list"]}
    assert variables == {"datasource": "datasource", "namespace": "query", "model": "query", "worker": "query"}
    ids = [p["id"] for p in dashboard["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_every_panel_names_its_source_unit_and_legend(dashboard):
    source = {"type": "prometheus", "uid": "${datasource}"}
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & taken, f"{panel['title']} overlaps another panel"
        taken |= cells
    for panel in queries.panels(dashboard):
        title = panel["title"]
        assert panel["datasource"] == source, title
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, title
        assert panel["targets"], title
        for target in panel["targets"]:
            assert target["datasource"] == source, title
            assert target["legendFormat"], title
            assert not re.search(r"(rate|increase)\([^\[]*\[\d", target["expr"]), f"{title}: use $__rate_interval"
            assert 'namespace=~"$namespace"' in target["expr"], f"{title} ignores the variable namespace"


def test_grafana_is_provisioned_with_the_dashboard():
    provisioning = ROOT / "deploy/grafana/provisioning"
    provider = yaml.safe_load((provisioning / "dashboards/loopserve.yaml").read_text())["providers"][0]
    mounts = compose()["services"]["grafana"]["volumes"]
    assert any(m.startswith("./grafana/loopserve.json:" + provider["options"]["path"]) for m in mounts)
    source = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in compose()["services"]


def compose():
    return yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())


def flags(command):
    return dict(arg.removeprefix("--").split("=", 1) for arg in command)


def test_compose_addresses_agree():
    services = compose()["services"]
    listening = set()
    for name, service in services.items():
        if not service["image"].startswith("loopserve/"):
            continue
        given = flags(service["command"])
        for key in ("listen", "metrics-listen"):
            listening.add(f"{name}:{given[key].rsplit(':', 1)[1]}")
        assert given["listen"].rsplit(":", 1)[1] in service["healthcheck"]["test"][-1], name
        assert (ROOT / service["build"]["dockerfile"]).exists(), name
        for source in service.get("volumes", []):
            volume = source.split(":")[0]
            assert volume.startswith("$") or volume in compose()["volumes"], f"{name}: volume {volume}"
        assert all(d in services for d in service.get("depends_on", {})), name
    router = flags(services["router"]["command"])
    for worker in router["workers"].split(","):
        identity, address = worker.split("=")
        assert address in listening
        assert flags(services[address.split(":")[0]]["command"])["id"] == identity
    for name in ("worker-1", "worker-2"):
        assert flags(services[name]["command"])["kvstore"] in listening
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    targets = {t for job in scraped for group in job["static_configs"] for t in group["targets"]}
    assert targets == {a for a in listening if a.endswith("2")}, "Prometheus scrapes every process, once"
    assert {job["job_name"] for job in scraped} == set(metrics_doc.PROCESSES)


def test_images_are_pinned():
    for name, service in compose()["services"].items():
        tag = service["image"].rsplit(":", 1)[1]
        assert tag and tag != "latest", name


@pytest.mark.parametrize("service", ["router", "worker-1", "worker-2", "kvstore"])
def test_compose_flags_are_accepted(service, check_config):
    definition = compose()["services"][service]
    check_config(definition["image"].split(":")[0].replace("/", "-"), definition["command"])


def test_dockerfiles_share_their_build_stage_and_run_without_root():
    stages = set()
    for part in ("router", "worker", "kvstore"):
        text = (ROOT / f"deploy/docker/{part}.Dockerfile").read_text()
        build, runtime = re.split(r"\n(?=FROM debian:bookworm-slim\n)", text)
        stages.add(build[build.index("# The build stage"):])
        assert "\nUSER 65532:65532\n" in runtime, part
        assert f'ENTRYPOINT ["/usr/local/bin/loopserve-{part}"]' in runtime, part
        given = flags(compose()["services"]["worker-1" if part == "worker" else part]["command"])
        exposed = set(re.search(r"^EXPOSE (.*)$", runtime, re.M).group(1).split())
        assert {v.rsplit(":", 1)[1] for k, v in given.items() if k.endswith("listen")} == exposed, part
        assert "-dev" not in runtime, f"{part}: the last stage holds no headers"
    assert len(stages) == 1, "the build stages differ: it would be built three times"
