"""Where a step's time goes: loopserve-step-profile's JSON as a picture and as a table.

    build/bin/loopserve-step-profile --model=F.gguf >profile.json
    python bench/draw_profile.py profile.json step_profile.svg

One bar for each case, its wall time 100 %, segments in the order in which a layer computes. The
column beside it is the share of the machine's limit: what matrix products and attention would take
at it, of the wall time.
"""

import argparse
import json
import pathlib
import re
import sys
import xml.etree.ElementTree as ET

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import report  # noqa: E402

# Name and colour of each operation, as bench/timed_backend.h has them. Colours that stand apart on
# white and on near-black; small operations are muted.
BETWEEN = "between"
LOOKS = {
    "embed": ("embedding", "#5c6773"),
    "norm": ("norm, residual", "#b0a18b"),
    "qkv": ("q, k, v projection", "#3f6fd8"),
    "rope": ("rotation", "#d9a7c7"),
    "append_kv": ("append KV", "#8d99ae"),
    "attention": ("attention", "#f2a33a"),
    "attention_output": ("attention output", "#6db3f2"),
    "gate_up": ("gate, up", "#2f9e6e"),
    "silu": ("SiLU", "#c9b458"),
    "down": ("down", "#8fd3a6"),
    "head": ("output head", "#8e63ce"),
    "other": ("other", "#a3a3a3"),
    BETWEEN: ("between operations", "#e0484d"),
}
LABELLED = 0.04  # a smaller segment has no room for its number

WIDTH, MARGIN = 960, 20
BAR_X, BAR_WIDTH = 212, 550
LIMIT_X, LIMIT_WIDTH = 790, 90
TOP, ROW, BAR = 78, 46, 28
LEGEND_COLUMNS, LEGEND_ROW = 5, 22

STYLE = """
text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328; }
.title { font-size: 16px; font-weight: 600; }
.small, .muted { font-size: 11.5px; }
.muted { fill: #59636e; }
.in-bar { font-size: 12px; text-anchor: middle; }
.on-light { fill: #14171a; }
.on-dark { fill: #ffffff; }
.page { fill: #ffffff; }
.track { fill: #e6e8eb; }
.reached { fill: #59636e; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .muted { fill: #9198a1; }
  .on-light { fill: #14171a; }
  .on-dark { fill: #ffffff; }
  .page { fill: #0d1117; }
  .track { fill: #2a313c; }
  .reached { fill: #9198a1; }
}
"""


def percent(share):
    """Three digits at most: 0.3 %, 12 %."""
    return f"{share * 100:.1f} %" if share < 0.0995 else f"{share * 100:.0f} %"


def case_name(identifier):
    """decode_b1_d7k: decode, batch 1, behind 7k."""
    words = identifier.split("_")
    parts = []
    for word in words[1:]:
        batch, depth = re.fullmatch(r"b(\d+)", word), re.fullmatch(r"d(\d+k?)", word)
        if batch:
            parts.append(f"batch {batch[1]}")
        elif depth:
            parts += [f"behind {depth[1]}"] if depth[1] != "0" else []
        else:
            words[0] += " " + {"on": "behind"}.get(word, word)
    return ", ".join([words[0], *parts])


def segments(case):
    """(operation, share of the wall time, share of its limit or None), what is between last."""
    parts = [(op["id"], op["share"], op["limit"]) for op in case["operations"]]
    # Two clocks that are read one after the other may make it a hair less than nothing.
    return [*parts, (BETWEEN, max(0.0, case["between_share"]), None)]


def shown(profile):
    """The operations that occur, in the order of the legend."""
    there = {op for case in profile["cases"] for op, _, _ in segments(case)}
    return [op for op in LOOKS if op in there]


def machine_text(profile):
    text = (f"{profile['model']}, {profile['backend']}, {profile['threads']} threads. "
            f"Machine's limit: {profile['bandwidth'] / 1e9:.1f} GB/s of memory reading")
    if profile["arithmetic"]:
        text += f", {profile['peak'] / 1e9:.0f} GFLOP/s of {profile['arithmetic']}"
        if (weights := profile.get("weight_peak", profile["peak"])) != profile["peak"]:
            text += f" ({weights / 1e9:.0f} with weights)"
    return text


# --- The picture


def _text(parent, x, y, text, style, **attributes):
    node = ET.SubElement(parent, "text", {"x": f"{x:g}", "y": f"{y:g}", "class": style, **attributes})
    node.text = text


def _rect(parent, x, y, width, height, **attributes):
    return ET.SubElement(parent, "rect", {"x": f"{x:.2f}", "y": f"{y:g}", "width": f"{width:.2f}",
                                          "height": f"{height:g}", **attributes})


def _label_style(colour):
    """Dark letters where the colour is light."""
    red, green, blue = (int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5))
    return "on-light" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "on-dark"


def _draw_case(svg, y, case):
    middle = y + BAR / 2
    _text(svg, MARGIN, middle - 3, case_name(case["id"]), "name")
    _text(svg, MARGIN, middle + 12, f"{case['tokens_per_second']:.0f} tokens/s", "muted")
    parts = segments(case)
    x, scale = BAR_X, BAR_WIDTH / sum(share for _, share, _ in parts)
    for op, share, limit in parts:
        name, colour = LOOKS[op]
        width = share * scale
        gap = 1 if width > 3 else 0  # the page shows between neighbours
        node = _rect(svg, x, y, width - gap, BAR, fill=colour, **{"class": f"segment {op}"})
        of_limit = f", {percent(limit)} of its limit" if limit is not None else ""
        ET.SubElement(node, "title").text = f"{name}: {percent(share)}{of_limit}"
        if share > LABELLED:
            _text(svg, x + width / 2, middle + 4, f"{share * 100:.0f}%",
                  f"in-bar {_label_style(colour)}")
        x += width
    _rect(svg, LIMIT_X, middle - 5, LIMIT_WIDTH, 10, rx="2", **{"class": "track"})
    _rect(svg, LIMIT_X, middle - 5, LIMIT_WIDTH * min(1.0, case["limit"]), 10, rx="2",
          **{"class": "reached"})
    _text(svg, LIMIT_X + LIMIT_WIDTH + 8, middle + 4, percent(case["limit"]), "limit")


def _draw_legend(svg, y, operations):
    column = (WIDTH - 2 * MARGIN) / LEGEND_COLUMNS
    for i, op in enumerate(operations):
        name, colour = LOOKS[op]
        x = MARGIN + i % LEGEND_COLUMNS * column
        top = y + i // LEGEND_COLUMNS * LEGEND_ROW
        _rect(svg, x, top, 13, 13, rx="2", fill=colour, **{"class": "key"})
        _text(svg, x + 20, top + 11, name, "small")


def draw(profile):
    """The picture as SVG text."""
    operations = shown(profile)
    legend_y = TOP + ROW * len(profile["cases"]) + 10
    legend_rows = -(-len(operations) // LEGEND_COLUMNS)
    height = legend_y + legend_rows * LEGEND_ROW + 32
    svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img",
                             "viewBox": f"0 0 {WIDTH} {height}", "width": str(WIDTH),
                             "height": str(height)})
    ET.SubElement(svg, "title").text = "Where a step's time goes"
    ET.SubElement(svg, "style").text = STYLE
    _rect(svg, 0, 0, WIDTH, height, rx="6", **{"class": "page"})
    _text(svg, MARGIN, 34, "Where a step's time goes", "title")
    _text(svg, BAR_X, TOP - 10, "wall time = 100 %", "muted")
    _text(svg, LIMIT_X, TOP - 10, "of the machine's limit", "muted")
    for i, case in enumerate(profile["cases"]):
        _draw_case(svg, TOP + i * ROW, case)
    _draw_legend(svg, legend_y, operations)
    _text(svg, MARGIN, height - 16, machine_text(profile), "muted")
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode") + "\n"


# --- The table


def table(profile):
    """A line for each operation, a column for each case: share of the wall time, and in brackets
    the share of the operation's own limit."""
    cases = profile["cases"]
    cells = [{op: (share, limit) for op, share, limit in segments(case)} for case in cases]
    rows = []
    for op in shown(profile):
        row = [LOOKS[op][0]]
        for column in cells:
            share, limit = column.get(op, (None, None))
            of_limit = f" ({limit * 100:.0f})" if limit is not None else ""
            row.append(None if share is None else percent(share) + of_limit)
        rows.append(row)
    rows.append(["of the limit", *(percent(case["limit"]) for case in cases)])
    rows.append(["tokens/s", *(f"{case['tokens_per_second']:.1f}" for case in cases)])
    return report.table(["share (of its limit)", *(case["id"] for case in cases)], rows)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("profile", type=pathlib.Path, help="what loopserve-step-profile printed")
    parser.add_argument("picture", type=pathlib.Path, help="the SVG file to write")
    options = parser.parse_args(argv)
    profile = json.loads(options.profile.read_text(encoding="utf-8"))
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(draw(profile), encoding="utf-8")
    print(table(profile))
    print(f"\n{machine_text(profile)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
