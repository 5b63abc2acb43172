"""Reads docs/metrics.md: what each process exports, and whether a live /metrics does exactly that.

By hand: curl -s 127.0.0.1:8102/metrics | python3 tests/deploy/metrics_doc.py loopserve-worker
"""

import dataclasses
import itertools
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
EVERY = "Every process"
PROCESSES = ("loopserve-router", "loopserve-worker", "loopserve-kvstore")


@dataclasses.dataclass(frozen=True)
class Metric:
    name: str
    type: str  # counter, gauge, histogram
    buckets: str  # the letter of a histogram's buckets, else ""
    groups: tuple  # ((label names), (value tuples)); values None: known only at run time
    meaning: str

    @property
    def labels(self):
        return [label for names, _ in self.groups for label in names]

    def values(self, label):
        """All documented values of a label; None when they are known only at run time."""
        for names, rows in self.groups:
            if label in names:
                return None if rows is None else {row[names.index(label)] for row in rows}
        raise KeyError(f"{self.name} has no label {label}")

    def series(self, free):
        """Every series as a dict, with `free[label]` for the labels known only at run time."""
        axes = []
        for names, rows in self.groups:
            rows = [(v,) for v in free[names[0]]] if rows is None else rows
            axes.append([dict(zip(names, row)) for row in rows])
        for combination in itertools.product(*axes):
            yield {k: v for part in combination for k, v in part.items()}


def _groups(text, codes):
    groups = []
    for group in filter(None, (g.strip() for g in text.strip("` ").split(";"))):
        names, values = group.split("=", 1)
        names = tuple(names.split("/"))
        if values == "*":
            groups.append((names, None))
            continue
        rows = tuple(tuple(v.split("/")) for v in values.replace("CODES", codes).split(","))
        if any(len(row) != len(names) for row in rows):
            raise ValueError(f"docs/metrics.md: {group!r} does not give every value of {names}")
        groups.append((names, rows))
    return tuple(groups)


def parse(path=ROOT / "docs/metrics.md"):
    """{process: {metric name: Metric}}; what every process exports is in each."""
    text = path.read_text()
    codes = re.search(r"CODES = `([^`]+)`", text).group(1)
    tables = {}
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        table = tables.setdefault(section.split("\n", 1)[0].strip(), {})
        for line in section.splitlines():
            row = re.match(r"\| `([a-z0-9_]+)` \| (\w+)(?:\[(\w)\])? \|([^|]*)\|([^|]*)\|$", line)
            if row:
                name, kind, buckets, labels, meaning = row.groups()
                if name in table:
                    raise ValueError(f"docs/metrics.md lists {name} twice")
                table[name] = Metric(name, kind, buckets or "", _groups(labels, codes), meaning.strip())
            elif line.startswith("| `"):
                raise ValueError(f"docs/metrics.md: cannot read the row {line!r}")
    return {p: {**tables[EVERY], **tables[p]} for p in PROCESSES}


def known():
    """{metric name: every Metric of that name}, over all processes."""
    result = {}
    for table in parse().values():
        for metric in table.values():
            result.setdefault(metric.name, []).append(metric)
    return result


def base_name(name, names):
    """The metric a series belongs to: x_bucket, x_sum and x_count are of x."""
    for suffix in ("_bucket", "_sum", "_count"):
        if name.endswith(suffix) and name.removesuffix(suffix) in names and name not in names:
            return name.removesuffix(suffix)
    return name


LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')


def read_exposition(text):
    """({name: type}, {name: set of frozenset of (label, value)}) of a /metrics page, without le."""
    types, series = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            types[name] = kind
        elif line and not line.startswith("#"):
            name, labels = re.match(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ", line).groups()
            pairs = frozenset(p for p in LABEL.findall(labels or "") if p[0] != "le")
            series.setdefault(base_name(name, types), set()).add(pairs)
    return types, series


def problems(process, text):
    """How a process's /metrics page differs from its table, as sentences; empty when it does not."""
    table = parse()[process]
    types, series = read_exposition(text)
    # prometheus-cpp's own endpoint counts its scrapes; they are no metrics of ours.
    types = {n: t for n, t in types.items() if not n.startswith("exposer_")}
    found = [f"{n} is exported but not documented" for n in types if n not in table]
    for name, metric in table.items():
        if name not in types:
            found.append(f"{name} is documented but not exported")
            continue
        if types[name] != metric.type:
            found.append(f"{name} is a {types[name]}, documented as {metric.type}")
        have = series.get(name, set())
        if not have:
            found.append(f"{name} has no series from the start")
        free = {
            names[0]: sorted({value for pairs in have for label, value in pairs if label == names[0]})
            for names, rows in metric.groups if rows is None
        }
        want = {frozenset(s.items()) for s in metric.series(free)}
        # A label known only at run time may be tied to another one (version and revision).
        if sum(rows is None for _, rows in metric.groups) > 1:
            want &= have
        found += [f"{name} lacks the series {dict(sorted(s))}" for s in want - have]
        found += [f"{name} has an undocumented series {dict(sorted(s))}" for s in have - want]
    return found


if __name__ == "__main__":
    complaints = problems(sys.argv[1], sys.stdin.read())
    print("\n".join(complaints) or "as documented")
    sys.exit(bool(complaints))
