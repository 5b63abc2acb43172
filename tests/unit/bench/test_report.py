"""The result form that every benchmark shares, and the corpus that tokenizers are compared on."""

import json
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "bench/reference")]

import kernels  # noqa: E402
import nasty_corpus  # noqa: E402
import report  # noqa: E402


def test_a_row_relates_ours_to_the_peer_and_to_the_limit():
    assert report.row("a", "tokens/s", 50, 100, 200) == {
        "id": "a", "unit": "tokens/s", "ours": 50, "peer": 100, "ratio": 0.5, "limit": 0.25}
    assert report.row("b", "ms", 50, 100, 10, lower_is_better=True)["ratio"] == 2
    assert report.row("b", "ms", 50, 100, 10, lower_is_better=True)["limit"] == 0.2


def test_what_is_not_there_is_null():
    row = report.row("a", "tokens/s", 1 / 3)
    assert (row["ours"], row["peer"], row["ratio"], row["limit"]) == (0.3333, None, None, None)


def test_the_file_has_the_common_form(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    path = report.write_rows("engine", [report.row("a", "s", 1)])
    document = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "engine.json"
    assert list(document) == ["bench", "machine", "commit", "rows"]
    assert document["machine"]["cores"] > 0
    assert document["rows"][0]["id"] == "a"


def test_a_part_measured_again_replaces_only_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    order = ["a", "b", "c"]
    first = [report.row("c", "s", 1), report.row("a", "s", 2), report.row("gone", "s", 3)]
    report.update_rows("cpu", first, order, settings={"a": "old", "c": "kept", "gone": "x"})
    path = report.update_rows("cpu", [report.row("a", "s", 4), report.row("b", "s", 5)], order,
                              settings={"a": "new"})
    document = json.loads(path.read_text(encoding="utf-8"))
    assert [(line["id"], line["ours"]) for line in document["rows"]] == [("a", 4), ("b", 5), ("c", 1)]
    assert all(line["commit"] for line in document["rows"])
    assert document["settings"] == {"a": "new", "c": "kept"}

    assert report.rows_to_lose("cpu", ["b"]) == []
    monkeypatch.setattr(report, "machine", lambda: {"cpu": "another"})
    assert report.rows_to_lose("cpu", ["b"]) == ["a", "c"]
    assert report.rows_to_lose("cpu", order) == []
    path = report.update_rows("cpu", [report.row("b", "s", 6)], order)
    assert [line["id"] for line in json.loads(path.read_text(encoding="utf-8"))["rows"]] == ["b"]


def test_kernels_are_told_by_their_medians_and_share_of_the_roofline():
    each = {"run_name": "MatMul/avx2/f32/M:8", "GFLOP/s": 50.0, "of_peak": 0.8}
    read = {"run_name": "MatMul/avx2/f32/M:1", "GB/s": 12.0}
    document = {"benchmarks": [{**each, "aggregate_name": "mean", "GFLOP/s": 1.0},
                               {**each, "aggregate_name": "median"},
                               {**read, "aggregate_name": "median"}]}
    assert kernels.rows(document) == [
        {"id": "MatMul/avx2/f32/M:8", "unit": "GFLOP/s", "ours": 50, "peer": None, "ratio": None,
         "limit": 0.8},
        {"id": "MatMul/avx2/f32/M:1", "unit": "GB/s", "ours": 12, "peer": None, "ratio": None,
         "limit": None}]


def test_the_table_aligns_its_columns():
    lines = report.table(("id", "value"), [("a", 1.0), ("long name", None)]).splitlines()
    assert lines == ["id         value", "---------  -----", "a              1", "long name      -"]


def test_the_corpus_is_large_varied_and_the_same_each_time():
    cases = nasty_corpus.cases(3000, seed=7)
    assert len(cases) == 3000
    assert cases == nasty_corpus.cases(3000, seed=7)
    assert cases != nasty_corpus.cases(3000, seed=8)
    assert len(nasty_corpus._SCRIPTS) >= 40
    joined = b"".join(cases)
    assert set(joined) == set(range(256))
    with pytest.raises(UnicodeDecodeError):
        joined.decode("utf-8")
    for wanted in ("\u200d", "\u0301", "<|im_start|>", "\r\n", "٣"):
        assert wanted.encode("utf-8") in joined
