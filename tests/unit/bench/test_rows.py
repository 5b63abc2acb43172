"""What the benchmarks measure: rows, the machine's limit for them, and the models they run on."""

import itertools
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "bench/reference")]

import cpu_rows  # noqa: E402
import mixed_trace  # noqa: E402
import random_model  # noqa: E402
import report  # noqa: E402
from llama_f64 import Gguf, Llama  # noqa: E402
from rows import Machine, Row, Work, kv_tokens  # noqa: E402

BIN = pathlib.Path(os.environ.get("LOOPSERVE_BIN_DIR", ROOT / "build" / "bin")).resolve()
RUNNER = BIN / "loopserve-engine-bench"
needs_runner = pytest.mark.skipif(not RUNNER.exists(), reason=f"no {RUNNER.name} in {BIN}")
TINY = random_model.SHAPES["tiny"]


@pytest.fixture(name="tiny", scope="module")
def fixture_tiny(tmp_path_factory):
    """tiny(kind) is the path of a small random model."""
    folder = tmp_path_factory.mktemp("models")

    def make(kind):
        path = folder / f"{kind}.gguf"
        if not path.exists():
            random_model.write(path, TINY, kind)
        return path
    return make


# --- Rows


def test_the_ids_name_model_row_and_other_weights():
    ids = cpu_rows.all_ids()
    assert len(ids) == len(set(ids))
    for wanted in ("smollm2_q4_1_prefill_512", "smollm2_q4_1_prefill_512_vs_q8_0",
                   "smollm2_q4_1_prefill_512_vs_q4_0", "smollm2_q4_1_prefill_7k",
                   "smollm2_q4_1_extend_64_on_7k", "smollm2_q4_1_decode_b1_d0",
                   "smollm2_q4_1_decode_b16_d0", "smollm2_q4_1_decode_b1_d7k",
                   "smollm2_q4_1_decode_b1_d7k_kv_int8", "smollm2_q4_1_decode_b8_d2k_kv_int8",
                   "smollm2_q4_1_mixed_itl_p99", "smollm2_q4_1_resident_memory",
                   "random_1b_q4_0_prefill_512", "random_1b_q8_0_decode_b1_d0"):
        assert wanted in ids
    for tokens in ("128", "512", "2k", "4k", "7k"):
        assert f"smollm2_q4_1_prefill_{tokens}" in ids
    for batch in (1, 2, 4, 8, 16):
        assert f"smollm2_q4_1_decode_b{batch}_d0" in ids


def test_an_id_says_what_is_measured():
    for suite in cpu_rows.SUITES.values():
        for name, row in suite.rows.items():
            assert ("_act8" in name) == (row.bits == 8)
            words = name.split("_")
            assert name.endswith("_kv_int8") == (row.kv == "int8")
            assert words[0] == row.kind
            if row.kind == "decode":
                assert (words[1], words[2]) == (f"b{row.batch}", f"d{row.depth // 1024}k"
                                                if row.depth else "d0")
            elif row.kind == "extend":
                assert (words[1], words[3]) == (str(row.tokens), f"{row.depth // 1024}k")
            else:
                assert words[1] in (str(row.tokens), f"{row.tokens // 1024}k")


def test_rows_are_selected_by_pattern_model_and_haste():
    assert cpu_rows.select() == cpu_rows.all_ids()
    assert cpu_rows.select(["*_prefill_512_vs_*"]) == ["smollm2_q4_1_prefill_512_vs_q8_0",
                                                       "smollm2_q4_1_prefill_512_vs_q4_0"]
    assert all(i.startswith("random_1b_q8_0") for i in cpu_rows.select(models=["random_1b_q8_0"]))
    assert len(cpu_rows.select(quick=True)) == len(cpu_rows.QUICK_ROWS)


def test_the_pool_holds_the_largest_prefill_and_every_history():
    rows = [Row("prefill", 100), Row("prefill", 512), Row("decode", 64, batch=4),
            Row("extend", 64, depth=1000), Row("decode", 16, depth=1000, batch=2)]
    assert kv_tokens(rows) == 512 + 4 * 64 + 2 * 1088
    assert kv_tokens([Row("prefill", 7168)]) == 7168


def test_a_row_of_rounds_says_between_what_they_lay():
    line = report.with_ranges(report.row("a", "tokens/s", 2, 4), [1, 2, 3], [4, 4, 5])
    assert (line["ours_min"], line["ours_max"], line["peer_min"], line["peer_max"]) == (1, 3, 4, 5)
    header, _, first = report.rows_table([line]).splitlines()
    assert header.split() == ["id", "unit", "ours", "rounds", "peer", "rounds", "ratio", "limit"]
    assert first.split() == ["a", "tokens/s", "2", "1-3", "4", "4-5", "0.5", "-"]


# --- Limits


class FakeSide:
    """Answers what the machine can do."""

    def __init__(self, bandwidth, **peaks):
        self.answers = {"bandwidth": bandwidth, **peaks}

    def ask(self, command, what):
        return self.answers["bandwidth" if command == "bandwidth" else what]


def operations(work, row):
    return work.weight_operations(row) + work.attention_operations(row)


def test_work_counts_weights_pairs_and_bytes(tiny):
    work = Work(str(tiny("Q4_0")))
    q, kv = TINY.heads * TINY.head_dim, TINY.kv_heads * TINY.head_dim
    layer = 2 * q * TINY.width + 2 * kv * TINY.width + 3 * TINY.ffn * TINY.width
    head = TINY.vocab * TINY.width
    assert work.layer_weights == TINY.layers * layer
    assert work.head_weights == head
    assert work.matrix_bytes == (TINY.layers * layer + head) // 32 * 18
    assert work.kv_token_bytes == {"bf16": TINY.layers * kv * 2 * 2,
                                   "int8": TINY.layers * 2 * (kv + 4 * TINY.kv_heads)}

    pairs = 10 * 100 + 10 * 11 / 2  # each of 10 tokens sees 100 before, itself and the new before it
    assert operations(work, Row("extend", 10, depth=100)) == (
        2 * 10 * TINY.layers * layer + 2 * head + 4 * pairs * q * TINY.layers)
    assert operations(work, Row("decode", 10, depth=100, batch=3)) == 3 * (
        2 * 10 * TINY.layers * layer + 2 * 10 * head + 4 * pairs * q * TINY.layers)
    assert work.bytes(Row("decode", 10, depth=100, batch=3)) == 10 * (
        work.matrix_bytes + 3 * 105 * work.kv_token_bytes["bf16"])
    assert work.bytes(Row("prefill", 1024)) == 2 * (
        work.matrix_bytes + 512 * work.kv_token_bytes["bf16"])
    assert work.bytes(Row("decode", 10, depth=100, kv="int8")) == 10 * (
        work.matrix_bytes + 105 * work.kv_token_bytes["int8"])


def test_the_limit_is_what_takes_longer(tiny):
    work, row = Work(str(tiny("Q4_0"))), Row("prefill", 512)
    slow_memory = Machine(FakeSide(1e3, bf16=1e15, int8=1e15, f32=1e15))
    assert slow_memory.limit(work, row) == pytest.approx(512 * 1e3 / work.bytes(row))
    slow_units = Machine(FakeSide(1e15, bf16=1e3, int8=1e15, f32=1e15))
    assert slow_units.limit(work, row) == pytest.approx(512 * 1e3 / operations(work, row))


def test_activations_of_eight_bits_have_the_limit_of_bytes_for_weights_alone(tiny):
    work, row = Work(str(tiny("Q4_0"))), Row("extend", 64, depth=100, bits=8)
    machine = Machine(FakeSide(1e15, bf16=1e3, int8=2e3, f32=1e15))
    assert machine.limit(work, row) == pytest.approx(
        64 / (work.weight_operations(row) / 2e3 + work.attention_operations(row) / 1e3))


@pytest.mark.parametrize("peaks, arithmetic", [((3, 2, 1), "bf16"), ((0, 2, 1), "int8"),
                                               ((0, 0, 1), "f32"), ((0, 0, 0), None)])
def test_the_limit_takes_the_arithmetic_that_is_there(tiny, peaks, arithmetic):
    machine = Machine(FakeSide(5, **dict(zip(("bf16", "int8", "f32"), peaks))))
    assert machine.arithmetic == arithmetic
    assert machine.limit(Work(str(tiny("Q4_0"))), Row("decode", 1)) > 0


# --- Models


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_a_random_model_computes_finite_and_varied_logits(tiny, kind):
    model = Llama(Gguf(tiny(kind)))
    logits = model.logits([1, 50, 60, 70])
    assert logits.shape == (4, TINY.vocab)
    assert 0.01 < logits.std() < 100
    assert len(set(logits.argmax(axis=1))) > 1


def test_the_same_seed_gives_the_same_file(tiny, tmp_path):
    random_model.write(tmp_path / "again", TINY, "Q8_0")
    assert (tmp_path / "again").read_bytes() == tiny("Q8_0").read_bytes()
    random_model.write(tmp_path / "other", TINY, "Q8_0", seed=1)
    assert (tmp_path / "other").read_bytes() != tiny("Q8_0").read_bytes()


def test_the_vocabulary_is_of_distinct_tokens():
    tokens, types = random_model.vocabulary(32000)
    assert len(tokens) == len(set(tokens)) == len(types) == 32000


@needs_runner
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_our_runner_loads_a_random_model_and_answers(tiny, kind):
    commands = ["prefill 40", "extend 8 100", "extend 8 100", "decode 16 3 2", "decode 2 100 2",
                "bandwidth 1", "peak bf16", "peak int8", "peak f32"]
    rows = [Row("prefill", 40), Row("extend", 8, depth=100), Row("decode", 2, depth=3, batch=16),
            Row("decode", 2, depth=100, batch=2)]
    run = subprocess.run([RUNNER, f"--model={tiny(kind)}", f"--kv-tokens={kv_tokens(rows)}",
                          "--threads=1"], input="\n".join(commands) + "\n", capture_output=True,
                         text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    ready, *answers = run.stdout.splitlines()
    assert ready.split()[0] == "ready" and ready.split()[2:] == ["512", "1024"]
    assert len(answers) == len(commands)
    assert all(float(answer) > 0 for answer in answers[:6])
    assert all(float(answer) >= 0 for answer in answers[6:])


@needs_runner
@pytest.mark.parametrize("command", ["prefill", "prefill 0", "prefill x", "extend 8", "peak f16",
                                     "extend 600 10", "decode 17 0 1", "decode 1 -1 1", "dance 1"])
def test_our_runner_refuses_what_it_does_not_know(tiny, command):
    run = subprocess.run([RUNNER, f"--model={tiny('Q4_0')}", "--threads=1"], input=command + "\n",
                         capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert "INVALID_ARGUMENT" in run.stderr


# --- The mixed trace


def test_the_plan_is_the_same_each_time_but_for_its_words():
    first, again, other = mixed_trace.plan(0), mixed_trace.plan(0), mixed_trace.plan(1)
    assert first == again
    assert [(t.session, t.arrival) for t in first] == [(t.session, t.arrival) for t in other]
    assert [len(t.text.split()) for t in first] == [len(t.text.split()) for t in other]
    assert all(a.text != b.text for a, b in zip(first, other))
    assert len(first) == mixed_trace.SESSIONS * mixed_trace.TURNS


def test_turns_arrive_as_a_poisson_process_and_fit_the_context():
    arrivals = {}
    for turn in mixed_trace.plan(0, sessions=50, turns=40, gap=2.0):
        arrivals.setdefault(turn.session, []).append(turn)
    gaps = [b.arrival - a.arrival for turns in arrivals.values()
            for a, b in itertools.pairwise(turns)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(2.0, rel=0.1)
    assert deviation == pytest.approx(mean, rel=0.15)  # as an exponential distribution has it
    longest = mixed_trace.FIRST_WORDS[1] + mixed_trace.LATER_WORDS[1] * (mixed_trace.TURNS - 1)
    assert longest + mixed_trace.ANSWER_TOKENS * mixed_trace.TURNS < 3500


def test_the_metrics_of_a_round():
    turns = [mixed_trace.PlayedTurn(0.0, 0.1, 1.0, [0.01] * 98, 10, 99),
             mixed_trace.PlayedTurn(1.0, 1.3, 2.0, [0.5, 0.02], 10, 3)]
    values = mixed_trace.metrics(turns)
    assert set(values) == set(mixed_trace.METRICS)
    assert values["throughput"] == pytest.approx(51)
    assert values["ttft_p50"] == pytest.approx(200) and values["ttft_p99"] == pytest.approx(300)
    assert values["itl_p50"] == pytest.approx(10) and values["itl_p99"] == pytest.approx(20)


def test_a_percentile_is_a_value_that_was_there():
    values = list(range(1, 101))
    assert mixed_trace.percentile(values, 0.99) == 99
    assert mixed_trace.percentile([7], 0.99) == 7
    assert mixed_trace.spread(0.4, 4) == [0.1] * 4
