"""`loopserve demo`, which `make demo` runs: the whole promise, on the real model."""

import json
import signal
import subprocess

import jsonschema

TOKENS = {"type": "integer", "minimum": 0}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["turns", "reprefill_ttft_ms", "ok"],
    "properties": {
        "reprefill_ttft_ms": {"type": "number", "exclusiveMinimum": 0},
        "ok": {"const": True},
        "turns": {
            "type": "array",
            "minItems": 4,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["session", "turn", "worker", "prompt_tokens", "computed_tokens", "restored_tokens",
                             "ttft_ms", "tokens_per_s", "text", "after"],
                "properties": {
                    "session": {"type": "string", "minLength": 1},
                    "turn": TOKENS,
                    "worker": {"type": "string", "minLength": 1},
                    "prompt_tokens": TOKENS,
                    "computed_tokens": TOKENS,
                    "restored_tokens": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["device", "host", "disk", "remote"],
                        "properties": {place: TOKENS for place in ("device", "host", "disk", "remote")},
                    },
                    "ttft_ms": {"type": "number", "exclusiveMinimum": 0},
                    "tokens_per_s": {"type": "number", "exclusiveMinimum": 0},
                    "text": {"type": "string", "minLength": 1},
                    "after": {"enum": ["normal", "worker_killed", "cluster_restarted"]},
                },
            },
        },
    },
}


def test_the_demo_keeps_its_promises(bin_dir, real_model, tmp_path):
    run = subprocess.run([bin_dir / "loopserve", "demo", "--json", "--model", real_model], capture_output=True,
                         text=True, timeout=600, env={"TMPDIR": str(tmp_path)})
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout.splitlines()[-1])
    jsonschema.validate(document, SCHEMA)
    turns = document["turns"]
    for turn in turns:
        assert turn["computed_tokens"] + sum(turn["restored_tokens"].values()) == turn["prompt_tokens"]
    assert len({turn["session"] for turn in turns}) == 1
    assert [turn["turn"] for turn in turns] == list(range(len(turns)))
    assert turns[-1]["prompt_tokens"] >= 3000
    killed = next(i for i, turn in enumerate(turns) if turn["after"] == "worker_killed")
    assert turns[killed]["worker"] != turns[killed - 1]["worker"]
    assert turns[killed]["restored_tokens"]["remote"] > 3000
    restarted = next(turn for turn in turns if turn["after"] == "cluster_restarted")
    assert restarted["restored_tokens"]["device"] == 0
    assert sum(restarted["restored_tokens"].values()) > 3000
    for turn in (turns[killed], restarted):
        assert "teal" in turn["text"].lower()
        assert turn["ttft_ms"] < document["reprefill_ttft_ms"]
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_demo_leaves_nothing(bin_dir, real_model, tmp_path):
    process = subprocess.Popen([bin_dir / "loopserve", "demo", "--model", real_model], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, env={"TMPDIR": str(tmp_path)})
    for line in process.stdout:
        if "Model:" in line:
            break
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
