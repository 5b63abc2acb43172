"""The chart: lints, renders for every kind of values, passes the strict schemas of several Kubernetes
versions, refuses what cannot work, and says the same names, ports and flags everywhere."""

import functools
import itertools
import json
import pathlib
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/loopserve"
HELM = pathlib.Path(sys.prefix) / "bin/helm"
VALUES = [CHART / "values.yaml", *sorted(CHART.glob("values-*.yaml")), *sorted(CHART.glob("ci/*-values.yaml"))]
KUBERNETES = ["1.27", "1.31", "1.35"]
MONITORING = "monitoring.coreos.com/v1"
RELEASE, NAMESPACE = "rel", "chat"
PROGRAMS = {"ranks": "worker"}  # of components that are not called like theirs
ALL = pytest.mark.parametrize("values", VALUES, ids=lambda p: p.name)


def helm(*args):
    return subprocess.run([HELM, *map(str, args)], capture_output=True, text=True)


@functools.cache
def render(values, kubernetes="1.35", monitoring=True, sets=()):
    args = ["template", RELEASE, CHART, "--namespace", NAMESPACE, "--kube-version", kubernetes, "-f", values]
    args += ["--api-versions", MONITORING] if monitoring else []
    args += [a for s in sets for a in ("--set", s)]
    run = helm(*args)
    assert run.returncode == 0, run.stderr
    return [m for m in yaml.safe_load_all(run.stdout) if m]


def of_kind(manifests, *kinds):
    return [m for m in manifests if m["kind"] in kinds]


def workloads(manifests):
    return of_kind(manifests, "Deployment", "StatefulSet")


def component(manifest):
    return manifest["metadata"]["labels"]["app.kubernetes.io/component"]


def servers(manifests):
    """The workloads that are called: all but the pods that only hold ranks for a worker."""
    return [w for w in workloads(manifests) if component(w) != "ranks"]


def container(workload):
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    return only


def pod_labels(workload):
    return workload["spec"]["template"]["metadata"]["labels"]


def matches(selector, labels):
    return selector.items() <= labels.items()


def config_of(workload, manifests):
    volumes = workload["spec"]["template"]["spec"]["volumes"]
    name = next(v["configMap"]["name"] for v in volumes if v["name"] == "config")
    (found,) = [m for m in of_kind(manifests, "ConfigMap") if m["metadata"]["name"] == name]
    return found["data"]["config.yaml"]


@ALL
def test_lints(values):
    run = helm("lint", "--strict", CHART, "-f", values)
    assert run.returncode == 0, run.stdout + run.stderr


@ALL
@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("monitoring", [True, False], ids=["operator", "plain"])
def test_manifests_are_valid(values, kubernetes, monitoring):
    manifests = render(values, kubernetes, monitoring)
    for manifest in manifests:
        if manifest["apiVersion"] == MONITORING:
            assert monitoring, "an object of an unknown type was rendered"
            continue
        kubernetes_validate.validate(manifest, kubernetes, strict=True)
    names = [(m["kind"], m["metadata"]["name"]) for m in manifests]
    assert len(names) == len(set(names)), "two objects have one name"


def test_validation_is_strict():
    broken = json.loads(json.dumps(workloads(render(VALUES[0]))[0]))
    broken["spec"]["template"]["spec"]["containers"][0]["comand"] = ["x"]
    with pytest.raises(Exception, match="comand"):
        kubernetes_validate.validate(broken, "1.35", strict=True)


@ALL
def test_selectors_find_exactly_their_pods(values):
    manifests = render(values)
    for workload in workloads(manifests):
        selector = workload["spec"]["selector"]["matchLabels"]
        assert [w for w in workloads(manifests) if matches(selector, pod_labels(w))] == [workload]
    for service in of_kind(manifests, "Service"):
        (found,) = [w for w in workloads(manifests) if matches(service["spec"]["selector"], pod_labels(w))]
        assert component(found) == component(service)
    covered = []
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        selector = budget["spec"]["selector"]["matchLabels"]
        found = [w["metadata"]["name"] for w in workloads(manifests) if matches(selector, pod_labels(w))]
        assert all(name.startswith(budget["metadata"]["name"]) for name in found)
        covered += found
    # Kubernetes evicts no pod that two budgets cover.
    assert len(covered) == len(set(covered))
    for policy in of_kind(manifests, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]["matchLabels"]
        found = [w for w in workloads(manifests) if matches(selector, pod_labels(w))]
        assert found and {component(w) for w in found} == {component(policy)}
        for peer in (p for rule in policy["spec"]["ingress"] for p in rule.get("from", [])):
            if "podSelector" in peer:
                selector = peer["podSelector"]["matchLabels"]
                assert any(matches(selector, pod_labels(w)) for w in workloads(manifests))


@ALL
def test_ports_agree(values):
    manifests = render(values)
    for workload in servers(manifests):
        box = container(workload)
        ports = {p["name"]: p["containerPort"] for p in box["ports"]}
        given = dict(a.removeprefix("--").split("=", 1) for a in box["args"] if "=" in a)
        assert given["listen"].endswith(f":{ports['grpc']}")
        assert given["metrics-listen"].endswith(f":{ports['metrics']}")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert box[probe]["grpc"]["port"] == ports["grpc"]
        services = [s for s in of_kind(manifests, "Service") if matches(s["spec"]["selector"], pod_labels(workload))]
        for port in itertools.chain.from_iterable(s["spec"]["ports"] for s in services):
            assert port["targetPort"] in ports
            assert port["appProtocol"] == ("kubernetes.io/h2c" if port["name"] == "grpc" else "http")
        # Scraped once: one Service has the port.
        assert sum(p["name"] == "metrics" for s in services for p in s["spec"]["ports"]) == 1
        for policy in of_kind(manifests, "NetworkPolicy"):
            if matches(policy["spec"]["podSelector"]["matchLabels"], pod_labels(workload)):
                rules = policy["spec"]["ingress"]
                named = {p["port"] for r in rules for p in r.get("ports", [])}
                # Ranks reach each other over ports that NCCL chooses.
                assert named == set(ports) - {"pods", "exchange"}
                assert {"pods", "exchange"} <= set(ports) or not any("pods" in a for a in box["args"])


@ALL
def test_addresses_agree(values):
    """The router lists every worker under its pod's name, and the workers know the store."""
    manifests = render(values)
    suffix = f".{NAMESPACE}.svc.cluster.local"
    (router,) = [w for w in workloads(manifests) if component(w) == "router"]
    stores = [w for w in workloads(manifests) if component(w) == "kvstore"]
    headless = {s["metadata"]["name"] for s in of_kind(manifests, "Service") if s["spec"].get("clusterIP") == "None"}
    expected = []
    for workload in workloads(manifests):
        if component(workload) != "worker":
            continue
        name, governing = workload["metadata"]["name"], workload["spec"]["serviceName"]
        assert governing in headless
        expected += [f"{name}-{i}={name}-{i}.{governing}{suffix}:8101" for i in range(workload["spec"]["replicas"])]
        assert "--id=$(POD_NAME)" in container(workload)["args"]
        config = yaml.safe_load(config_of(workload, manifests))
        assert config.get("kvstore") == (f"{stores[0]['metadata']['name']}{suffix}:8201" if stores else None)
    assert all(s["spec"]["serviceName"] in headless for s in stores)
    assert yaml.safe_load(config_of(router, manifests))["workers"] == expected


def test_each_worker_has_the_pods_that_hold_its_ranks():
    manifests = render(CHART / "ci/pods-values.yaml")
    ranks = [w for w in workloads(manifests) if component(w) == "ranks"]
    (leader,) = [w for w in workloads(manifests) if w["metadata"]["name"].endswith("-worker-large")]
    assert len(ranks) == leader["spec"]["replicas"] == 2
    ports = {p["name"]: p["containerPort"] for p in container(leader)["ports"]}
    assert "--pod-ranks=2" in container(leader)["args"]
    assert f"--pod-listen=0.0.0.0:{ports['pods']}" in container(leader)["args"]
    assert ports["exchange"] == ports["pods"] + 1
    name, governing = leader["metadata"]["name"], leader["spec"]["serviceName"]
    for number, workload in enumerate(ranks):
        box = container(workload)
        assert workload["spec"]["replicas"] == 3
        assert f"--join={name}-{number}.{governing}:{ports['pods']}" in box["args"]
        assert config_of(workload, manifests) == config_of(leader, manifests)
        assert box["env"][1:] == container(leader)["env"][1:] and box["resources"] == container(leader)["resources"]
        assert "ports" not in box and "livenessProbe" not in box
        assert [i["name"] for i in workload["spec"]["template"]["spec"]["initContainers"]] == ["model"]
    (small,) = [w for w in workloads(manifests) if w["metadata"]["name"].endswith("-worker-small")]
    assert not any("pod" in a for a in container(small)["args"] if not a.startswith("--id"))


def test_one_drain_stops_one_worker():
    """A worker serves only while it has all of its pods, so they and their worker share a budget."""
    manifests = render(CHART / "ci/pods-values.yaml")
    budgets = {b["metadata"]["name"]: b["spec"] for b in of_kind(manifests, "PodDisruptionBudget")}
    assert all(b["maxUnavailable"] == 1 for b in budgets.values())
    for group, count in (("large", 3), ("small", 1)):
        selector = budgets[f"rel-loopserve-worker-{group}"]["selector"]["matchLabels"]
        found = [w for w in workloads(manifests) if matches(selector, pod_labels(w))]
        assert len(found) == count and {component(w) for w in found} <= {"worker", "ranks"}


@ALL
def test_pods_are_locked_down(values):
    for workload in workloads(render(values)):
        pod = workload["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 65532
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        claimed = {c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", [])}
        for box in pod["containers"] + pod.get("initContainers", []):
            context = box["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert box["resources"]["limits"]["memory"] and box["resources"]["requests"]["cpu"]
            assert not box["image"].endswith(":latest") and re.search(r"[:@]", box["image"].rsplit("/", 1)[-1])
            assert {m["name"] for m in box["volumeMounts"]} <= {v["name"] for v in pod["volumes"]} | claimed


@ALL
def test_the_grace_period_covers_the_drain(values):
    manifests = render(values)
    for workload in servers(manifests):
        config = yaml.safe_load(config_of(workload, manifests))
        drain = sum(int(config[k].removesuffix("s")) for k in ("drain-settle", "drain-timeout"))
        assert workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > drain


@ALL
def test_liveness_asks_for_the_process_and_readiness_for_the_service(values):
    """"" is SERVING while the process lives. Were a router restarted for want of a ready worker, its
    clients would get refused connections instead of NO_WORKER and the time to come back."""
    for workload in servers(render(values)):
        box = container(workload)
        assert not box["livenessProbe"]["grpc"].get("service")
        assert box["readinessProbe"]["grpc"]["service"].startswith("loopserve.")
        if component(workload) == "router":
            assert not box["startupProbe"]["grpc"].get("service")


@ALL
def test_probed_services_exist_in_the_contract(values):
    for workload in servers(render(values)):
        for probe in ("startupProbe", "readinessProbe"):
            service = container(workload)[probe]["grpc"].get("service")
            if not service:
                continue
            package, name = service.rsplit(".", 1)
            area = package.split(".")[1]
            text = (ROOT / f"proto/{area}/v1/{area}.proto").read_text()
            assert f"package {package};" in text and f"service {name} {{" in text


def test_a_new_configuration_restarts_the_pods():
    def checksums(*sets):
        return {w["metadata"]["name"]: w["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
                for w in workloads(render(VALUES[0], sets=sets))}

    before = checksums()
    assert checksums("kvstore.hostBytes=256Mi")["rel-loopserve-kvstore"] != before["rel-loopserve-kvstore"]
    assert checksums("workerDefaults.kv.codec=int8")["rel-loopserve-worker-main"] != before["rel-loopserve-worker-main"]
    more = checksums("workerDefaults.replicas=3")
    assert more["rel-loopserve-router"] != before["rel-loopserve-router"]
    # One more worker is no reason to restart the ones that run.
    assert more["rel-loopserve-worker-main"] == before["rel-loopserve-worker-main"]


@pytest.mark.parametrize("sets, complaint", [
    (["router.replica=1"], "additional properties 'replica' not allowed"),
    (["router.replicas=two"], "at '/router/replicas': got string, want integer"),
    (["workerDefaults.kv.hostBytes=8GB"], "'8GB' does not match pattern"),
    (["workerDefaults.kv.codec=fp4"], "value must be one of 'auto', 'bf16', 'int8', 'fp8'"),
    (["workerDefaults.kv.dtype=fp4"], "value must be one of 'bf16', 'int8', 'fp8'"),
    (["workerDefaults.model.file=model.safetensors"], "does not match pattern"),
    (["workerDefaults.sessionTtl=a month"], "does not match pattern"),
    (["workers[0].name=Main"], "does not match pattern"),
    (["workers[0].replicas=2"], "missing property 'name'"),
    (["router.extraArgs[0]=log-level"], "does not match pattern"),
    (["router.replicas=2"], "router.replicas: more than one router needs a session directory that they share"),
    (["image.tag=latest"], 'the tag "latest" is refused'),
    (["workerDefaults.model.hostPath=/srv"],
     "workers[main].model: exactly one of existingClaim, hostPath and image.reference has to be set, not 2"),
    (["workerDefaults.model.existingClaim="], "has to be set, not 0"),
    (["workers[0].name=a", "workers[1].name=a"], "workers[a]: two groups have this name"),
    (["workerDefaults.kv.disk.type=hostPath"], "type hostPath needs hostPath"),
    (["workerDefaults.kv.disk.hostPath=/srv"], "hostPath is set, but type is pvc"),
    (["workerDefaults.tp=6", "workerDefaults.podsPerWorker=4"], "tp 6 cannot be shared equally by podsPerWorker 4"),
    (["workers[0].name=main-0-ranks"], "names that end like this are those of sets of ranks"),
    (["workerDefaults.kv.hostBytes=3Gi"],
     "workers[main]: 1Gi + 3Gi of KV do not fit into resources.limits.memory 4Gi"),
    (["kvstore.hostBytes=2Gi"], "kvstore: 2Gi of KV do not fit into resources.limits.memory 1Gi"),
    (["fullnameOverride=a-name-of-thirty-characters-xx", "workers[0].name=another-long-name"],
     "is longer than 52 characters"),
    # 46 characters, and "-9-ranks" behind them.
    (["fullnameOverride=a-name-of-thirty-characters-xx", "workers[0].name=too-long", "workerDefaults.replicas=10",
      "workerDefaults.tp=2", "workerDefaults.podsPerWorker=2"],
     "name a-name-of-thirty-characters-xx-worker-too-long-9-ranks is longer than 52 characters"),
], ids=lambda v: ",".join(v) if isinstance(v, list) else "")
def test_bad_values_are_refused_with_a_reason(sets, complaint):
    run = helm("template", RELEASE, CHART, *(a for s in sets for a in ("--set", s)))
    assert run.returncode != 0
    assert complaint in run.stderr, run.stderr


def test_an_empty_list_of_workers_is_refused():
    run = helm("template", RELEASE, CHART, "--set-json", "workers=[]")
    assert run.returncode != 0 and "a router without workers refuses every turn" in run.stderr


def test_the_schema_knows_every_value_and_no_other():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(part, given, path):
        if "$ref" in part:
            part = schema["definitions"][part["$ref"].rsplit("/", 1)[1]]
        if "properties" not in part or path.endswith(".resources"):
            return
        # `global` comes from parent charts.
        assert set(part["properties"]) - {"global"} == set(given), path or "the top"
        for name, value in given.items():
            if isinstance(value, dict):
                compare(part["properties"][name], value, f"{path}.{name}")

    compare(schema, values, "")
    entry = schema["properties"]["workers"]["items"]["properties"]
    assert set(entry) - {"name"} == set(schema["properties"]["workerDefaults"]["properties"])


def test_monitoring_carries_the_rules_and_the_dashboard_of_deploy():
    manifests = render(CHART / "ci/full-values.yaml")
    (rule,) = of_kind(manifests, "PrometheusRule")
    files = [yaml.safe_load((ROOT / f"deploy/prometheus/{n}.yml").read_text()) for n in ("rules", "alerts")]
    assert rule["spec"]["groups"] == [group for file in files for group in file["groups"]]
    maps = of_kind(manifests, "ConfigMap")
    (dashboard,) = [m for m in maps if m["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    source = json.loads((ROOT / "deploy/grafana/loopserve.json").read_text())
    assert json.loads(dashboard["data"]["loopserve.json"]) == source
    (monitor,) = of_kind(manifests, "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    selector = monitor["spec"]["selector"]["matchLabels"]
    scraped = [s for s in of_kind(manifests, "Service") if matches(selector, s["metadata"]["labels"])
               and any(p["name"] == endpoint["port"] for p in s["spec"]["ports"])]
    assert {component(s) for s in scraped} == {"router", "worker", "kvstore"}
    assert endpoint["relabelings"][0]["replacement"] == "loopserve-$1"


def test_notes_name_what_exists():
    run = helm("install", RELEASE, CHART, "--dry-run=client", "--namespace", NAMESPACE)
    assert run.returncode == 0, run.stderr
    notes = run.stdout[run.stdout.index("NOTES:"):]
    names = {m["metadata"]["name"] for m in render(VALUES[0])}
    mentioned = re.findall(r"(?:service|deployment)/(\S+)", notes)
    assert mentioned and set(mentioned) <= names
    for area, service, rpc in re.findall(r"loopserve\.(\w+)\.v1\.(\w+)/(\w+)", notes):
        text = (ROOT / f"proto/{area}/v1/{area}.proto").read_text()
        assert f"service {service} {{" in text and f"rpc {rpc}(" in text


@ALL
def test_the_executables_accept_every_flag_and_config(values, check_config, tmp_path):
    manifests = render(values)
    for workload in workloads(manifests):
        config = tmp_path / f"{workload['metadata']['name']}.yaml"
        config.write_text(config_of(workload, manifests))
        args = [a.replace("/etc/loopserve/config.yaml", str(config)).replace("$(POD_NAME)", "worker-0")
                for a in container(workload)["args"]]
        check_config(f"loopserve-{PROGRAMS.get(component(workload), component(workload))}", args)


@pytest.mark.parametrize("part", ["router", "worker", "kvstore"])
def test_every_flag_is_in_the_help(part, bin_dir):
    run = subprocess.run([bin_dir / f"loopserve-{part}", "--help"], capture_output=True, text=True)
    for manifests in map(render, VALUES):
        for workload in workloads(manifests):
            if component(workload) != part:
                continue
            used = {a.removeprefix("--").split("=")[0] for a in container(workload)["args"]}
            used |= set(yaml.safe_load(config_of(workload, manifests)))
            missing = [f for f in used if not re.search(rf"--{f}\b(?!-)", run.stdout)]
            assert not missing, f"loopserve-{part} --help does not list {missing}"
