"""The picture of a step's time and its table, from a small profile; and the program that makes one."""

import json
import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench"))

import draw_profile  # noqa: E402
import random_model  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def operation(name, share, limit=None):
    return {"id": name, "calls": 1, "seconds": share, "share": share, "limit": limit}


def case(identifier, *operations, limit=0.5):
    between = 1 - sum(op["share"] for op in operations)
    return {"id": identifier, "tokens_per_second": 10.0, "limit": limit, "between_share": between,
            "operations": list(operations)}


PROFILE = {
    "model": "a < b & c", "backend": "cpu/avx2", "threads": 2, "bandwidth": 5e9,
    "arithmetic": "f32", "peak": 1e11,
    "cases": [
        case("prefill_512", operation("norm", 0.03), operation("gate_up", 0.6, 0.7),
             operation("attention", 0.35, 0.4)),
        case("decode_b1_d7k", operation("qkv", 0.2, 0.9), operation("head", 0.5, 0.95),
             operation("attention", 0.25, 1.5), limit=1.1),
    ],
}


def drawn(profile):
    return ET.fromstring(draw_profile.draw(profile))


def with_class(svg, tag, name):
    return [node for node in svg.iter(SVG + tag) if name in node.get("class", "").split()]


def test_every_operation_is_a_segment_as_wide_as_its_share():
    svg = drawn(PROFILE)
    found = [(node.get("class").split()[1], node) for node in with_class(svg, "rect", "segment")]
    assert [op for op, _ in found] == ["norm", "gate_up", "attention", "between",
                                       "qkv", "head", "attention", "between"]
    by_case = [dict(found[:4]), dict(found[4:])]
    assert float(by_case[0]["gate_up"].get("width")) == pytest.approx(
        0.6 * draw_profile.BAR_WIDTH, abs=1.1)
    for bar in by_case:
        edges = [(float(node.get("x")), float(node.get("width"))) for node in bar.values()]
        assert edges[0][0] == draw_profile.BAR_X
        assert all(x + width <= after + 0.02 for (x, width), (after, _) in zip(edges, edges[1:]))
        assert sum(edges[-1]) == pytest.approx(draw_profile.BAR_X + draw_profile.BAR_WIDTH, abs=1.1)
        assert all(node.find(SVG + "title").text for node in bar.values())


def test_only_segments_with_room_have_their_number():
    labels = [node.text for node in with_class(drawn(PROFILE), "text", "in-bar")]
    assert labels == ["60%", "35%", "20%", "50%", "25%", "5%"]


def test_the_legend_has_each_operation_once():
    svg = drawn(PROFILE)
    keys = with_class(svg, "rect", "key")
    assert len(keys) == len(draw_profile.shown(PROFILE)) == 6
    assert len({node.get("fill") for node in keys}) == 6
    names = [node.text for node in with_class(svg, "text", "small")]
    assert names == ["norm, residual", "q, k, v projection", "attention", "gate, up", "output head",
                     "between operations"]


def test_the_limit_is_told_and_its_bar_ends_at_the_limit():
    svg = drawn(PROFILE)
    assert [node.text for node in with_class(svg, "text", "limit")] == ["50 %", "110 %"]
    widths = [float(node.get("width")) for node in with_class(svg, "rect", "reached")]
    assert widths == [draw_profile.LIMIT_WIDTH / 2, draw_profile.LIMIT_WIDTH]


def test_nothing_leaves_the_page():
    svg = drawn(PROFILE)
    height = float(svg.get("height"))
    for node in svg.iter(SVG + "rect"):
        assert 0 <= float(node.get("x")) <= draw_profile.WIDTH - float(node.get("width"))
        assert 0 <= float(node.get("y")) <= height - float(node.get("height"))


def test_cases_have_readable_names():
    names = {"prefill_512": "prefill 512", "prefill_7k": "prefill 7k",
             "extend_64_on_7k": "extend 64 behind 7k", "decode_b1_d0": "decode, batch 1",
             "decode_b1_d7k": "decode, batch 1, behind 7k", "decode_b16_d0": "decode, batch 16"}
    assert {identifier: draw_profile.case_name(identifier) for identifier in names} == names


def test_the_table_has_shares_and_limits():
    lines = draw_profile.table(PROFILE).splitlines()
    assert lines[0].split()[-2:] == ["prefill_512", "decode_b1_d7k"]
    rows = {line[:20].strip(): line[20:].split() for line in lines[2:]}
    assert rows["gate, up"] == ["60", "%", "(70)", "-"]
    assert rows["between operations"] == ["2.0", "%", "5.0", "%"]
    assert rows["of the limit"] == ["50", "%", "110", "%"]


def test_the_program_writes_the_picture_and_prints_the_table(tmp_path, capsys):
    source, target = tmp_path / "profile.json", tmp_path / "images/profile.svg"
    source.write_text(json.dumps(PROFILE), encoding="utf-8")
    assert draw_profile.main([str(source), str(target)]) == 0
    assert ET.parse(target).getroot().tag == SVG + "svg"
    assert "a < b & c, cpu/avx2, 2 threads" in capsys.readouterr().out


def test_every_operation_of_the_backend_has_a_look():
    source = (ROOT / "bench/timed_backend.cc").read_text(encoding="utf-8")
    names = [line.split('"')[1] for line in source.splitlines() if line.startswith("      return \"")]
    assert names and [*names, draw_profile.BETWEEN] == list(draw_profile.LOOKS)


BIN = pathlib.Path(os.environ.get("LOOPSERVE_BIN_DIR", ROOT / "build" / "bin")).resolve()
PROGRAM = BIN / "loopserve-step-profile"


@pytest.mark.skipif(not PROGRAM.exists(), reason=f"no {PROGRAM.name} in {BIN}")
def test_the_profile_of_a_tiny_model_adds_up_and_can_be_drawn(tmp_path):
    model = tmp_path / "tiny.gguf"
    random_model.write(model, random_model.SHAPES["tiny"], "Q4_0")
    run = subprocess.run([PROGRAM, f"--model={model}", "--threads=1", "--rounds=2"],
                         capture_output=True, text=True, timeout=60, check=True)
    profile = json.loads(run.stdout)
    assert [c["id"] for c in profile["cases"]] == ["prefill_512", "decode_b1_d0", "decode_b16_d0"]
    for c in profile["cases"]:
        spent = sum(op["seconds"] for op in c["operations"]) + c["between_seconds"]
        assert spent == pytest.approx(c["seconds"])
        assert 0 < c["between_share"] < 1 and c["limit"] > 0
    decode = {op["id"]: op for op in profile["cases"][1]["operations"]}
    assert decode["head"]["calls"] == 64 and decode["qkv"]["calls"] == 128
    assert with_class(drawn(profile), "rect", "segment")
