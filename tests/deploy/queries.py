"""Every PromQL expression we ship, and what can be read off it without a server."""

import dataclasses
import json
import re

import metrics_doc
import yaml

ROOT = metrics_doc.ROOT
DASHBOARDS = sorted((ROOT / "deploy/grafana").glob("*.json"))
RULES = ROOT / "deploy/prometheus/rules.yml"
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
# Labels that Prometheus adds to what it scrapes.
TARGET_LABELS = {"namespace", "job", "instance"}


@dataclasses.dataclass(frozen=True)
class Query:
    where: str
    expr: str
    legend: str = ""
    kind: str = "panel"  # panel, variable, alert, record


def rules(path):
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def panels(dashboard):
    for panel in dashboard["panels"]:
        yield from panel.get("panels", []) if panel["type"] == "row" else [panel]


def all_queries():
    found = []
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        for panel in panels(dashboard):
            for target in panel["targets"]:
                where = f"{path.name}: {panel['title']} {target['refId']}"
                found.append(Query(where, target["expr"], target["legendFormat"]))
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                expr, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
                where = f"{path.name}: variable {variable['name']}"
                found.append(Query(where, expr, f"{{{{{label}}}}}", "variable"))
    found += [Query(f"record {r['record']}", r["expr"], kind="record") for r in rules(RULES)]
    found += [Query(f"alert {r['alert']}", r["expr"], kind="alert") for r in rules(ALERTS)]
    return found


def concrete(expr, window="10s"):
    """The expression with Grafana's variables filled in: everything, over a short window."""
    expr = expr.replace("$__rate_interval", window)
    return re.sub(r"\$(namespace|model|worker)\b", ".*", expr)


def _outside_quotes_and_braces(expr, pattern, replacement):
    parts = re.split(r'("(?:[^"\\]|\\.)*"|\{[^}]*\})', expr)
    return "".join(p if i % 2 else re.sub(pattern, replacement, p) for i, p in enumerate(parts))


def always(expr):
    """An alert's expression that yields series also when nothing is wrong: comparisons say 0 or 1."""
    return _outside_quotes_and_braces(expr, r"(==|!=|>=|<=|>|<)(?!\s*bool)", r"\1 bool")


SELECTOR = re.compile(r"\b((?:loopserve|process)[a-zA-Z0-9_:]*|up)\s*(?:\{([^}]*)\})?(?!\w*\s*\()")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')


def selectors(expr):
    """[(metric name, [(label, operator, value)])] of an expression."""
    return [(name, MATCHER.findall(matchers or "")) for name, matchers in SELECTOR.findall(expr)]


def function_arguments(expr, functions):
    """Names of the metrics to which one of the functions is applied directly."""
    return re.findall(rf"\b(?:{'|'.join(functions)})\(\s*([a-zA-Z_:][\w:]*)", expr)


def legend_labels(legend):
    return re.findall(r"\{\{\s*(\w+)\s*\}\}", legend)
