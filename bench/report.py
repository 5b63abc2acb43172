"""What every benchmark's result looks like: one JSON file in bench/results and one table.

    {"bench": "engine", "machine": {...}, "commit": "...", "rows": [
        {"id": "decode_b1_d0", "unit": "tokens/s", "ours": 1, "peer": 2, "ratio": 0.5, "limit": 0.3}]}

ratio is ours / peer in the sense that more is better; limit is the share of what the machine could
do at most. Either is null where there is none. Rows of several rounds hold medians and say between
what the rounds lay: ours_min, ours_max, peer_min, peer_max.
"""

import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results"
_SHOWN_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8",
                "amx_bf16")


def machine():
    """The processor and memory this runs on, without anything that names a host."""
    info = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    flags = info.get("flags", "").split()
    memory = pathlib.Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]
    return {
        "cpu": info.get("model name", "unknown"),
        "family": f"{info.get('vendor_id', '?')} {info.get('cpu family', '?')}"
                  f"/{info.get('model', '?')}",
        "cores": len(os.sched_getaffinity(0)),
        "features": [flag for flag in _SHOWN_FLAGS if flag in flags],
        "memory_gib": round(int(memory) / 2**20, 1),
    }


def commit():
    """The checked-out commit, with + for local changes; "unknown" outside a repository."""
    def git(*args):
        return subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True,
                              check=True).stdout.strip()
    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".",
                      ":!bench/results")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def row(identifier, unit, ours, peer=None, limit=None, lower_is_better=False):
    """One row. limit: what the machine could do, in the same unit."""
    ratio = share = None
    if peer:
        ratio = peer / ours if lower_is_better else ours / peer
    if limit:
        share = limit / ours if lower_is_better else ours / limit
    return {"id": identifier, "unit": unit, "ours": _round(ours), "peer": _round(peer),
            "ratio": _round(ratio), "limit": _round(share)}


def with_ranges(line, ours, peer):
    """The row with the smallest and the largest of all rounds of each side."""
    return {**line, "ours_min": _round(min(ours)), "ours_max": _round(max(ours)),
            "peer_min": _round(min(peer)), "peer_max": _round(max(peer))}


def _round(value):
    return None if value is None else float(f"{value:.4g}")


def write(name, document):
    """bench/results/<name>.json; returns its path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def write_rows(bench, rows, **extra):
    return write(bench, {"bench": bench, "machine": machine(), "commit": commit(), "rows": rows,
                         **extra})


def _same_machine(document):
    return {**document.get("machine", {}), "memory_gib": None} == {**machine(), "memory_gib": None}


def rows_to_lose(bench, measured):
    """Ids in the result file which update_rows would drop because another kind of machine measured
    them and `measured`, the ids of this run, leaves them out."""
    path = RESULTS / f"{bench}.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if _same_machine(old):
        return []
    return [line["id"] for line in old.get("rows", []) if line["id"] not in measured]


def update_rows(bench, rows, order, **extra):
    """The same for a benchmark that is run in parts: replaces the rows measured now, each of which
    says at which commit, and keeps the others if the same kind of machine measured them. `order`:
    the ids there are. `extra`: dictionaries by row id."""
    path = RESULTS / f"{bench}.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not _same_machine(old):
        old = {}
    now = commit()
    found = {line["id"]: line for line in old.get("rows", [])}
    found.update({line["id"]: {**line, "commit": now} for line in rows})
    merged = {key: {**old.get(key, {}), **values} for key, values in extra.items()}
    return write_rows(bench, [found[i] for i in order if i in found],
                      **{key: {i: values[i] for i in order if i in values}
                         for key, values in merged.items()})


def table(header, rows):
    """Text columns, aligned: the first to the left, the others to the right."""
    cells = [[_cell(value) for value in line] for line in [header, *rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = []
    for line in cells:
        first, *others = (cell.ljust(width) if i == 0 else cell.rjust(width)
                          for i, (cell, width) in enumerate(zip(line, widths)))
        lines.append("  ".join([first, *others]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _cell(value):
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rows_table(rows):
    keys = ("id", "unit", "ours", "peer", "ratio", "limit")
    header, cells = list(keys), [[line[key] for key in keys] for line in rows]
    if rows and "ours_min" in rows[0]:
        header[3:4] = ["rounds", "peer", "rounds"]
        for line, row in zip(cells, rows):
            ours, peer = (f"{_cell(row[f'{side}_min'])}-{_cell(row[f'{side}_max'])}"
                          for side in ("ours", "peer"))
            line[3:4] = [ours, line[3], peer]
    return table(header, cells)
