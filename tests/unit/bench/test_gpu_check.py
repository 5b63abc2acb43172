"""The check for machines with a GPU: how it spends its time, what its rows say, and that all of it works
together where there is none."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench"))

import gpu_check  # noqa: E402
import gpu_peer  # noqa: E402
import gpu_process  # noqa: E402
import gpu_rows  # noqa: E402
from gpu_plan import FAIL, PASS, SKIPPED, Failed, Plan, Skipped, Step, chosen  # noqa: E402
from gpu_rows import Model, passed_through  # noqa: E402

BIN = pathlib.Path(os.environ.get("LOOPSERVE_BIN_DIR", ROOT / "build" / "bin")).resolve()
STEP = BIN / "loopserve-gpu-step"
needs_step = pytest.mark.skipif(not STEP.exists(), reason=f"no {STEP.name} in {BIN}")


# --- The plan


class FakeTime:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def takes(self, seconds, result=None):
        def run():
            self.now += seconds
            if isinstance(result, Exception):
                raise result
            return result
        return run


def results(plan):
    return {outcome.name: outcome.result for outcome in plan.outcomes}


def test_what_no_longer_fits_is_skipped_and_smaller_parts_go_on():
    clock = FakeTime()
    plan = Plan(100, lambda _: None, clock)
    plan.run([Step("first", 10, clock.takes(50)), Step("large", 60, clock.takes(60)),
              Step("small", 40, clock.takes(40)), Step("late", 20, clock.takes(1))])
    assert results(plan) == {"first": PASS, "large": SKIPPED, "small": PASS, "late": SKIPPED}
    assert [outcome.seconds for outcome in plan.outcomes] == [50, 0, 40, 0]
    assert "60 s, 50 s are left" in plan.outcomes[1].words
    assert plan.ok


def test_a_failure_stops_only_what_needs_it():
    clock = FakeTime()
    plan = Plan(100, lambda _: None, clock)
    plan.run([Step("bad", 1, clock.takes(1, Failed("wrong\nat length"))),
              Step("worse", 1, clock.takes(1, ValueError("broken"))),
              Step("absent", 1, clock.takes(1, Skipped("no such thing"))),
              Step("needs it", 1, clock.takes(1), needs=("bad",)), Step("other", 1, clock.takes(1, "fine"))])
    assert results(plan) == {"bad": FAIL, "worse": FAIL, "absent": SKIPPED, "needs it": SKIPPED,
                             "other": PASS}
    assert not plan.ok
    assert "ValueError: broken" in plan.outcomes[1].words
    table = plan.table().splitlines()
    assert table[0].split() == ["check", "result", "seconds", "what"]
    assert table[2].split() == ["bad", "FAIL", "1.0", "wrong"]


def test_results_are_written_after_every_part():
    written = []
    plan = Plan(100, lambda _: None, after=lambda: written.append(len(written)))
    plan.run([Step("a", 1, lambda: None), Step("b", 1, lambda: 1 / 0)])
    assert written == [0, 1]


def test_the_reduced_set_and_words_choose():
    steps = [Step("decode 1", 1, None, quick=True), Step("decode 2", 1, None), Step("prefill", 1, None)]
    assert [step.name for step in chosen(steps, quick=True)] == ["decode 1"]
    assert [step.name for step in chosen(steps, words=["2", "fill"])] == ["decode 2", "prefill"]
    assert chosen(steps) == steps


@pytest.fixture(name="check")
def fixture_check(tmp_path):
    def make(*args):
        return gpu_check.Check(gpu_check.parse(["--bundle", str(tmp_path), "--out",
                                                str(tmp_path / "out/gpu.json"), *args]))
    return make


def test_the_most_important_comes_first_and_fits(check):
    for args, budget in ((["--quick"], 225), ([], 480)):
        made = check(*args)
        steps = chosen(made.steps(), made.options.quick)
        names = [step.name for step in steps]
        assert len(names) == len(set(names))
        assert names[:4] == ["environment", "tests", "conversation", "limits"]
        first, then = names.index("decode gpu_8b_bf16_b1 d0"), names.index("prefill gpu_8b_bf16_8192 at once")
        assert first < then < names.index("restore") < names.index("decode gpu_8b_bf16_b8 d0")
        assert made.options.budget_seconds == budget
        assert sum(step.seconds for step in steps[:7]) < budget
    assert sum(step.seconds for step in chosen(check("--quick").steps(), quick=True)) < 300


# --- Rows


def test_ids_say_what_is_measured():
    assert Model().id(gpu_rows.decode_id(1, 0)) == "gpu_8b_bf16_decode_b1_d0"
    assert Model(kv="int8").id(gpu_rows.decode_id(16, 8192)) == "gpu_8b_bf16_decode_b16_d8k_kv_int8"
    assert Model("1b", "q4_0").id(gpu_rows.prefill_id(8192)) == "gpu_1b_q4_0_prefill_8k"
    assert gpu_rows.prefill_id(8192, 512) == "prefill_8k_chunks_512"


def test_rows_of_other_benchmarks_pass_through():
    assert passed_through({"id": "copy", "unit": "GB/s", "ours": 40, "peer": 50}) == {
        "id": "gpu_copy", "unit": "GB/s", "ours": 40, "peer": 50, "ratio": 0.8, "limit": None}
    assert passed_through({"id": "gpu_x", "value": 2, "limit": 0.5})["limit"] == 0.5
    assert passed_through({"id": "gpu_itl", "unit": "ms", "ours": 5, "peer": 4})["ratio"] == 0.8
    assert passed_through({"note": "no row"}) is None
    assert passed_through({"id": "x", "ours": "fast"}) is None
    assert gpu_rows.json_lines('noise\n{"id": "a"}\n{broken\n') == [{"id": "a"}]


def test_of_the_lines_of_kernels_the_fastest_paths_become_rows():
    limits = {"copy_gbps": 3000.0, "gemm_tflops": 800.0, "sdpa_8b_8k_tflops": 500.0}
    matmul = {"bench": "matmul", "shape": "gate_up", "type": "BF16"}
    lines = [{**matmul, "rows": 1, "path": "few", "weight_gb_per_s": 2400, "tflops": 2.4},
             {**matmul, "rows": 1, "path": "library", "weight_gb_per_s": 1200, "tflops": 1.2},
             {**matmul, "rows": 8192, "path": "library", "weight_gb_per_s": 50, "tflops": 600},
             {**matmul, "rows": 3, "path": "few", "weight_gb_per_s": 2400, "tflops": 2.4}]
    found = {row["id"]: row for row in gpu_rows.matmul_rows(lines, limits)}
    assert set(found) == {"gpu_matmul_gate_up_bf16_1_rows", "gpu_matmul_gate_up_bf16_8192_rows"}
    assert [(row["unit"], row["limit"]) for row in found.values()] == [("GB/s", 0.8), ("TFLOP/s", 0.75)]

    attention = {"bench": "prefill_attention", "rows": 8192, "kv_tokens": 8192}
    lines = [{**attention, "path": "fa2", "tflops": 300.0}, {**attention, "path": "sm90", "tflops": 450.0},
             {**attention, "rows": 512, "path": "fa2", "tflops": 200.0}]
    found = {row["id"]: row for row in gpu_rows.attention_rows(lines, limits)}
    assert (found["gpu_sdpa_8k"]["ours"], found["gpu_sdpa_8k"]["ratio"]) == (450, 0.9)
    assert found["gpu_sdpa_512_on_8k"]["peer"] is None


class FakeSide:
    """Answers from a list, whatever it is asked."""

    alive = well = True

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def ask(self, line, _=None):
        self.asked.append(line)
        return {} if line == "forget" else self.answers.pop(0)


@pytest.fixture(name="sides")
def fixture_sides(check):
    made = check("--quick").sides
    made.limits = {"copy_gbps": 3000.0, "gemm_tflops": 800.0, "h2d_gbps": 50.0, "d2h_gbps": 25.0}
    made.model = Model()
    return made


def test_decoding_is_compared_with_the_memory(sides):
    answer = {"tokens_per_second": 150.0, "bytes_per_step": 15e9}
    sides.ours_side = FakeSide(answer, answer, answer)
    sides.decode(Model(), 1, 0)
    row = sides.rows["gpu_8b_bf16_decode_b1_d0"]
    assert (row["ours"], row["peer"], row["limit"]) == (150, None, 0.75)
    sides.decode(Model(), 8, 0)
    sides.decode(Model(), 1, 8192)
    assert sides.ours_side.asked == ["forget", "decode 1 0 48", "decode 8 0 48", "forget",
                                     "decode 1 8192 48"]


def test_what_comes_back_of_a_step_is_part_of_the_rows_name(sides):
    answer = {"tokens_per_second": 150.0, "bytes_per_step": 15e9}
    sides.ours_side = FakeSide(answer, answer, answer, answer)
    sides.depth = 0
    sides.decode(Model(), 32, 0, "drawn")
    assert sides.rows["gpu_8b_bf16_decode_b32_d0_drawn"]["ours"] == 150
    assert sides.ours_side.asked == ["sampling drawn", "decode 32 0 48", "sampling greedy"]


def test_prefill_is_compared_with_the_peer_and_the_products(sides):
    sides.ours_side = FakeSide({"tokens_per_second": 32000.0, "flops_per_step": 8192 * 16e9})
    sides.peer_side = FakeSide({"tokens_per_second": 40000.0, "how": "compiled", "sdpa": "cudnn"})
    words = sides.prefill(Model(), 8192)
    row = sides.rows["gpu_8b_bf16_prefill_8k"]
    assert (row["ratio"], row["limit"]) == (0.8, 0.64)
    assert "PyTorch compiled, SDPA cudnn" in words
    assert json.loads(sides.peer_side.asked[0]) == {"do": "prefill", "shape": "8b", "tokens": 8192,
                                                     "compile_seconds": 25}


def test_prefill_in_e4m3_is_compared_with_twice_the_products(sides):
    model = Model(weights="fp8")
    assert model.flags == ("--shape=8b", "--weights=bf16", "--activation-bits=8", "--kv-dtype=bf16")
    assert Model(weights="q4_0").flags[1:3] == ("--weights=q4_0", "--activation-bits=16")
    sides.model = model
    sides.ours_side = FakeSide({"tokens_per_second": 32000.0, "flops_per_step": 8192 * 16e9})
    sides.prefill(model, 8192)
    row = sides.rows["gpu_8b_fp8_prefill_8k"]
    assert (row["peer"], row["limit"]) == (None, 0.32)


def test_prefill_without_a_peer_is_a_row_all_the_same(sides):
    sides.ours_side = FakeSide({"tokens_per_second": 32000.0, "flops_per_step": 8192 * 16e9})
    sides.peer_failed = "no module named torch"
    sides.prefill(Model(), 8192)
    assert sides.rows["gpu_8b_bf16_prefill_8k"]["ratio"] is None


def test_kv_moves_are_compared_with_plain_copies(sides):
    sides.ours_side = FakeSide({"to_device_gbps": 45.0, "to_host_gbps": 25.0, "during_ms": 12.5,
                                "alone_ms": 10.0})
    sides.kv_moves(Model(), 256, 2048)
    assert sides.rows["gpu_8b_bf16_pool_write_gbps"]["ratio"] == 0.9
    assert sides.rows["gpu_8b_bf16_pool_read_gbps"]["ratio"] == 1
    assert sides.rows["gpu_8b_bf16_itl_during_restore"]["ratio"] == 0.8


def test_the_result_file_has_the_common_form(check, sides):
    made = check("--quick")
    made.sides = sides
    sides.add("gpu_x", "GB/s", [1, 2, 3], [4])
    made.plan.run([Step("a", 1, lambda: "well")])
    document = json.loads(made.options.out.read_text(encoding="utf-8"))
    assert list(document)[:4] == ["bench", "machine", "commit", "rows"]
    assert document["bench"] == "gpu"
    assert list(document["rows"][0])[:6] == ["id", "unit", "ours", "peer", "ratio", "limit"]
    assert document["checks"][0]["result"] == "PASS"


# --- Programs


def test_the_counts_of_a_test_program_are_read():
    output = "[  PASSED  ] 7 tests.\n[  SKIPPED ] 2 tests, listed below:\n"
    assert gpu_process.test_counts(output) == {"PASSED": 7, "FAILED": 0, "SKIPPED": 2}


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def test_tests_are_run_and_a_failing_one_is_told(tmp_path):
    bundle = gpu_process.Bundle(tmp_path)
    with pytest.raises(Skipped):
        gpu_process.run_tests(bundle, lambda _: None, lambda: 60)
    program(tmp_path / "tests/a_test", "echo '[  PASSED  ] 3 tests.'")
    program(tmp_path / "tests/gpu_test", "echo '[  PASSED  ] 4 tests.'")
    assert [path.name for path in bundle.tests()] == ["gpu_test", "a_test"]
    assert gpu_process.run_tests(bundle, lambda _: None, lambda: 60).startswith("7 tests of 2")
    assert "no time for gpu_test, a_test" in gpu_process.run_tests(bundle, lambda _: None, lambda: 1)
    program(tmp_path / "tests/bad_test", "echo expected 1; exit 1")
    said = []
    with pytest.raises(Failed, match="bad_test"):
        gpu_process.run_tests(bundle, said.append, lambda: 60)
    assert "expected 1" in said[0]


def test_on_a_gpu_skipped_tests_are_a_failure(tmp_path):
    bundle = gpu_process.Bundle(tmp_path)
    program(tmp_path / "tests/gpu_test", "echo '[  SKIPPED ] 3 tests, listed below:'")
    assert "3 skipped" in gpu_process.run_tests(bundle, lambda _: None, lambda: 60)
    with pytest.raises(Failed, match="no test ran on the GPU"):
        gpu_process.run_tests(bundle, lambda _: None, lambda: 60, gpu=True)


def test_the_bundle_s_own_runner_is_asked_what_programs_need(tmp_path):
    program(tmp_path / "bin/tool", "echo $LD_LIBRARY_PATH")
    program(tmp_path / "run.sh", "export LD_LIBRARY_PATH=/some/where; exec \"$@\"")
    bundle = gpu_process.Bundle(tmp_path)
    command = bundle.command("tool", 1)
    assert command == [str(tmp_path / "bin/tool"), "1"]
    assert bundle.run(command, 10).stdout == "/some/where\n"
    program(tmp_path / "run.sh", "echo 'glibc here is old; using our own' >&2; exec \"$@\"")
    assert gpu_process.Bundle(tmp_path).command("tool")[0] == str(tmp_path / "run.sh")


def test_a_program_that_ends_or_hangs_is_told(tmp_path):
    bundle = gpu_process.Bundle(tmp_path)
    program(tmp_path / "bin/ends", "echo broken >&2; exit 3")
    with pytest.raises(Failed, match="ends ended with 3: broken"):
        gpu_process.Answering(bundle.command("ends"), bundle.env, tmp_path / "log", 10)
    program(tmp_path / "bin/hangs", "exec sleep 60")
    with pytest.raises(Failed, match="did not answer"):
        gpu_process.Answering(bundle.command("hangs"), bundle.env, tmp_path / "log", 0.2)
    program(tmp_path / "bin/says", "echo '{\"ready\": 1}'; read line; echo '{\"error\": \"no\"}'; read line")
    side = gpu_process.Answering(bundle.command("says"), bundle.env, tmp_path / "log", 10)
    with pytest.raises(Failed, match="says: no"):
        side.ask("anything")
    assert side.alive and not side.well
    side.close()
    with pytest.raises(Skipped):
        bundle.command("absent")


def test_the_peer_counts_operations_as_we_do():
    shape = gpu_peer.SHAPES["tiny"]
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = shape.layers * shape.hidden * (2 * q + 2 * kv + 3 * shape.ffn)
    pairs = 100 * 101 / 2
    assert shape.prefill_flops(100) == (200 * weights + 2 * shape.vocab * shape.hidden
                                        + shape.layers * 4 * q * pairs)


# --- loopserve-gpu-step


def ask_step(*commands, args=()):
    run = subprocess.run([STEP, "--serve", "--shape=tiny", "--backend=cpu", "--threads=1",
                          "--step-tokens=128", "--kv-tokens=2048", *args],
                         input="\n".join(commands) + "\n", capture_output=True, text=True, timeout=60,
                         check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


@needs_step
@pytest.mark.parametrize("weights", ["bf16", "q4_0", "q8_0", "f32"])
@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_our_side_measures_a_model_that_is_in_no_file(weights, kv):
    ready, decode, _, drawn, logits, prefill, extend, forget, restore, bad = ask_step(
        "decode 2 100 4", "sampling drawn", "decode 1 8 2", "sampling logits", "prefill 200 64 2", "extend 30 100 2", "forget", "restore 4 40 3",
        "decode 2 100", args=(f"--weights={weights}", f"--kv-dtype={kv}"))
    shape = gpu_peer.SHAPES["tiny"]
    layer = shape.hidden * (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    matrices = shape.layers * (layer + 3 * shape.ffn * shape.hidden) + shape.vocab * shape.hidden
    bits = {"bf16": 16, "q4_0": 4.5, "q8_0": 8.5, "f32": 32}[weights]
    assert ready["matrix_bytes"] == matrices * bits / 8
    vector = 2 * shape.head_dim if kv == "bf16" else shape.head_dim + 4
    assert ready["kv_token_bytes"] == shape.layers * 2 * shape.kv_heads * vector
    assert decode["bytes_per_step"] == ready["matrix_bytes"] + 2 * 105 * ready["kv_token_bytes"]
    assert decode["steps"] == 4 and 0 < decode["min_ms"] <= decode["median_ms"]
    assert decode["sampling"] == "greedy" and drawn["sampling"] == "drawn"
    assert logits == {"mode": "sampling", "sampling": "logits"} and prefill["sampling"] == "logits"
    assert decode["tokens_per_second"] == pytest.approx(2e3 / decode["median_ms"])
    assert prefill["flops_per_step"] == shape.prefill_flops(200)
    assert prefill["tokens_per_second"] == pytest.approx(200e3 / prefill["median_ms"])
    assert extend["mode"] == "extend" and forget["mode"] == "forget"
    assert all(restore[key] > 0 for key in ("to_device_gbps", "to_host_gbps", "during_gbps",
                                            "alone_ms", "during_ms"))
    assert "INVALID_ARGUMENT" in bad["error"]


@needs_step
def test_our_side_measures_once_by_flags():
    run = subprocess.run([STEP, "--shape=tiny", "--weights=bf16", "--backend=cpu", "--threads=1",
                          "--mode=decode", "--batch=1", "--depth=16", "--steps=3", "--step-tokens=64",
                          "--kv-tokens=256"], capture_output=True, text=True, timeout=60, check=True)
    answer = json.loads(run.stdout)
    assert answer["ready"].startswith("cpu") and answer["gb_per_second"] > 0
    assert subprocess.run([STEP, "--shape=9b"], capture_output=True, check=False).returncode == 1
    assert subprocess.run([STEP, "--sampling=odd"], capture_output=True, check=False).returncode == 2
    assert subprocess.run([STEP, "--nonsense"], capture_output=True, check=False).returncode == 2


@needs_step
def test_all_of_it_works_together_without_a_gpu(tmp_path):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "bin").symlink_to(BIN)
    out = tmp_path / "gpu.json"
    run = subprocess.run([sys.executable, ROOT / "bench/gpu_check.py", "--bundle", bundle, "--out", out,
                          "--shape", "tiny", "--backend", "cpu"], capture_output=True, text=True,
                         timeout=120, check=False)
    document = json.loads(out.read_text(encoding="utf-8"))
    found = {line["check"]: line["result"] for line in document["checks"]}
    assert run.returncode == 0, run.stdout + run.stderr
    assert found["tests"] == SKIPPED and found["conversation"] == PASS and found["restore"] == PASS
    ids = {row["id"] for row in document["rows"]}
    assert {"gpu_tiny_bf16_decode_b2_d64", "gpu_tiny_bf16_prefill_128",
            "gpu_tiny_bf16_pool_write_gbps", "gpu_tiny_bf16_itl_during_restore", "gpu_tiny_q4_0_decode_b1_d0"} <= ids
    assert "PASS after" in run.stdout
