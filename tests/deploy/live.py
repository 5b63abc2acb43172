"""A real Prometheus over live targets, and the questions our dashboard, rules and alerts ask it.

A suite that has a running cluster under load uses it like this:

    with live.Prometheus(cluster.metrics_targets) as prometheus:
        prometheus.wait_for_scrapes(5)
        assert not live.problems(prometheus)
        assert not live.page_problems(cluster.metrics_targets)
"""

import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request

import metrics_doc
import queries
import yaml


def normalise(targets):
    """{"loopserve-worker": ["host:port", ...]} from any of the forms a caller may have.

    Keys may be jobs or instances ("router", "worker-1"), values one address or several.
    """
    jobs = {}
    for key, addresses in targets.items():
        part = next((p for p in metrics_doc.PROCESSES if p.removeprefix("loopserve-") in key), None)
        if part is None:
            raise ValueError(f"target {key!r} names none of {metrics_doc.PROCESSES}")
        addresses = [addresses] if isinstance(addresses, str) else list(addresses)
        jobs.setdefault(part, []).extend(addresses)
    return jobs


def from_environment(text):
    """LOOPSERVE_METRICS_TARGETS: job=host:port,... where a job may occur several times."""
    jobs = {}
    for item in filter(None, text.split(",")):
        job, address = item.split("=", 1)
        jobs.setdefault(job, []).append(address)
    return jobs


def available():
    return shutil.which("prometheus") is not None


class Prometheus:
    """Scrapes `targets` every second, with our rules loaded, until the with block ends."""

    def __init__(self, targets):
        self.jobs = normalise(targets)

    def __enter__(self):
        self._dir = pathlib.Path(tempfile.mkdtemp(prefix="loopserve-prometheus-"))
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(queries.RULES), str(queries.ALERTS)],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": addresses, "labels": {"namespace": "test"}}]}
                for job, addresses in self.jobs.items()
            ],
        }
        (self._dir / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._process = subprocess.Popen(
            ["prometheus", f"--config.file={self._dir}/prometheus.yml", f"--storage.tsdb.path={self._dir}/data",
             "--web.listen-address=127.0.0.1:0", "--log.level=info"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._log, self._address, self._ready = [], None, False
        ended_or_ready = threading.Event()

        def follow():
            for line in self._process.stderr:
                self._log.append(line)
                if match := re.search(r'msg="?Listening on"? address=(\S+:\d+)', line):
                    self._address = match.group(1)
                if "ready to receive web requests" in line:
                    self._ready = True
                    ended_or_ready.set()
            ended_or_ready.set()

        threading.Thread(target=follow, daemon=True).start()
        ended_or_ready.wait(30)
        if not self._ready:
            self.__exit__()
            raise RuntimeError("prometheus did not start:\n" + "".join(self._log[-20:]))
        return self

    def __exit__(self, *_):
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._dir, ignore_errors=True)

    def _get(self, path, **parameters):
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def query(self, expr):
        """The series of an instant query; ValueError when it is refused."""
        answer = self._get("query", query=expr)
        if answer["status"] != "success":
            raise ValueError(answer["error"])
        return answer["data"]["result"]

    def parses(self, expr):
        """Why the expression is no PromQL, or None."""
        answer = self._get("format_query", query=expr)
        return None if answer["status"] == "success" else answer["error"]

    def type_of(self, name):
        entries = self._get("metadata", metric=name)["data"].get(name, [])
        return entries[0]["type"] if entries else None

    def rule_errors(self):
        groups = self._get("rules")["data"]["groups"]
        return [f"{r['name']}: {r['lastError']}" for g in groups for r in g["rules"] if r.get("lastError")]

    def wait_for_scrapes(self, count, timeout=60):
        """Until every target was scraped `count` times and the rules were evaluated after that."""
        want = sum(len(addresses) for addresses in self.jobs.values())
        deadline = time.monotonic() + timeout
        tick = threading.Event()
        while time.monotonic() < deadline:
            counts = [float(s["value"][1]) for s in self.query("sum_over_time(up[2m])")]
            recorded = self.query("count_over_time(loopserve:error:ratio_rate5m[2m])")
            if len(counts) == want and min(counts) >= count and recorded:
                return
            tick.wait(0.2)
        down = [s["metric"]["instance"] for s in self.query("up == 0")]
        raise TimeoutError(f"{len(counts)} of {want} targets were scraped, {counts} times; down: {down}")


def problems(prometheus):
    """Sentences on every shipped expression that does not hold against this Prometheus."""
    found = prometheus.rule_errors()
    documented = metrics_doc.known()
    for q in queries.all_queries():
        expr = queries.concrete(q.expr)
        if error := prometheus.parses(expr):
            found.append(f"{q.where}: does not parse: {error}")
            continue
        series = prometheus.query(queries.always(expr) if q.kind == "alert" else expr)
        if not series:
            found.append(f"{q.where}: no series for {expr}")
            continue
        for label in queries.legend_labels(q.legend):
            if any(label not in s["metric"] for s in series):
                found.append(f"{q.where}: the legend names {label}, which a series lacks: {series[0]['metric']}")
        for functions, allowed in ((("rate", "irate", "increase"), ("counter", "histogram")),
                                   (("deriv", "delta", "predict_linear"), ("gauge",))):
            for name in queries.function_arguments(expr, functions):
                base = metrics_doc.base_name(name, documented)
                kind = prometheus.type_of(base)
                if kind not in allowed or (kind == "histogram" and base == name):
                    found.append(f"{q.where}: {functions[0]}-like function over {name}, a {kind}")
    return found


def page_problems(targets):
    """Sentences on every process whose /metrics page is not what docs/metrics.md says."""
    found = []
    for job, addresses in normalise(targets).items():
        for address in addresses:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
                text = response.read().decode()
            found += [f"{job} at {address}: {p}" for p in metrics_doc.problems(job, text)]
            lint = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True)
            # What the exposing library names itself is not ours to mend.
            found += [f"{job} at {address}: promtool: {line}"
                      for line in (lint.stdout + lint.stderr).splitlines() if line.startswith(("loopserve_", "process_"))]
    return found
