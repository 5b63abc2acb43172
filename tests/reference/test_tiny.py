"""The engine's logits beside an independent float64 implementation, on tiny random models.

Needs the executables make-tiny-model and loopserve-logits of $LOOPSERVE_BIN_DIR.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench" / "reference"))
from llama_f64 import Gguf, Llama, round_bf16  # noqa: E402

BIN = pathlib.Path(os.environ.get("LOOPSERVE_BIN_DIR", ROOT / "build" / "bin")).resolve()
needs_tools = pytest.mark.skipif(not (BIN / "loopserve-logits").exists(),
                                 reason=f"no loopserve-logits in {BIN}")

PRESETS = ["gqa", "mha", "mqa", "untied", "odd", "biased", "llama3", "linear", "yarn", "wide", "nine"]
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K"]
TOKENS = [(i * 37 + 11) % 279 for i in range(60)]


@pytest.fixture(scope="session", name="models")
def fixture_models(tmp_path_factory):
    """models(preset, type) is the path of a tiny model."""
    folder = tmp_path_factory.mktemp("models")

    def make(preset, kind):
        path = folder / f"{preset}-{kind}.gguf"
        if not path.exists():
            subprocess.run([BIN / "make-tiny-model", f"--preset={preset}", f"--type={kind}",
                            f"--out={path}"], check=True)
        return path
    return make


def run_logits(model, *flags, tokens=TOKENS):
    """loopserve-logits as float32 [tokens, vocab]; skips the test when the backend is missing."""
    ids, out = model.with_suffix(".ids"), model.with_suffix(".out")
    ids.write_text(" ".join(map(str, tokens)))
    done = subprocess.run([BIN / "loopserve-logits", f"--model={model}", f"--tokens={ids}",
                           f"--out={out}", *flags], capture_output=True, text=True, check=False)
    if "NOT_FOUND" in done.stderr and "backend" in done.stderr:
        pytest.skip("this build lacks the backend")
    assert done.returncode == 0, done.stderr
    return np.fromfile(out, np.float32).reshape(len(tokens), -1)


def error(expected, actual):
    return np.abs(expected - actual).max() / np.abs(expected).max()


@needs_tools
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("preset", PRESETS)
def test_reference_backend_agrees(models, preset, kind):
    model = models(preset, kind)
    actual = run_logits(model, "--backend=reference", "--kv-dtype=f32")
    assert error(Llama(Gguf(model)).logits(TOKENS), actual) <= 1e-4


@needs_tools
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("preset", PRESETS)
def test_cpu_backend_agrees(models, preset, kind):
    model = models(preset, kind)
    actual = run_logits(model, "--backend=cpu", "--kv-dtype=f32")
    assert error(Llama(Gguf(model)).logits(TOKENS), actual) <= 1e-4


@needs_tools
@pytest.mark.parametrize("preset", PRESETS)
def test_bf16_keys_and_values_agree_with_rounded_ones(models, preset):
    model = models(preset, "F32")
    actual = run_logits(model, "--backend=reference", "--kv-dtype=bf16")
    # A value on the edge may round the other way in float32, so the bound is wider.
    assert error(Llama(Gguf(model), kv_bf16=True).logits(TOKENS), actual) <= 5e-3


@needs_tools
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
@pytest.mark.parametrize("preset", ["gqa", "untied", "odd", "wide"])
def test_arrangement_does_not_change_a_bit(models, preset, kind, backend):
    model = models(preset, kind)
    flags = (f"--backend={backend}", "--kv-dtype=bf16")
    whole = run_logits(model, *flags, "--chunk=512")
    for arrangement in ("--chunk=1", "--chunk=7", "--tp=2", "--tp=3", "--threads=1"):
        assert np.array_equal(whole, run_logits(model, *flags, arrangement)), arrangement


@needs_tools
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
@pytest.mark.parametrize("preset, ranks", [("mqa", (2, 4)), ("wide", (5, 8)), ("nine", (4, 6, 9))])
def test_ranks_may_outnumber_the_kv_heads(models, preset, ranks, kind, backend):
    model = models(preset, kind)
    flags = (f"--backend={backend}", "--kv-dtype=bf16")
    whole = run_logits(model, *flags)
    for tp in ranks:
        assert np.array_equal(whole, run_logits(model, *flags, f"--tp={tp}")), tp


@needs_tools
def test_too_many_ranks_are_refused(models):
    model = models("gqa", "F32")
    ids = model.with_suffix(".ids")
    ids.write_text("1 2 3")
    done = subprocess.run([BIN / "loopserve-logits", f"--model={model}", f"--tokens={ids}",
                           "--backend=reference", "--tp=7"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "6 query heads" in done.stderr


@needs_tools
def test_the_comparison_can_tell_rotations_apart(models):
    """Rotating halves instead of neighbours still gives plausible numbers: they must differ."""
    gguf = Gguf(models("gqa", "F32"))
    model = Llama(gguf)
    expected = model.logits(TOKENS)
    rows = np.arange(model.head_dim).reshape(2, -1).T.ravel()
    original = gguf.tensor

    def permuted(name):
        value = original(name)
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            value = value.reshape(-1, model.head_dim, value.shape[1])[:, rows].reshape(value.shape)
        return value
    gguf.tensor = permuted
    assert error(expected, model.logits(TOKENS)) > 1e-2


def test_round_bf16():
    values = np.array([1.0, 1.00390625, 1.01171875, -0.0])
    assert round_bf16(values).tolist() == [1.0, 1.0, 1.015625, 0.0]
