"""A conversation through router, worker and KV store, whose history leaves the device and comes back:
the answer has to be the one that was given when it had stayed.

    python3 bench/gpu_conversation.py --bundle build/release --backend cpu

The model is a small random one: what it says is noise, but the same noise every time. Steps are kept
short, so that computing the history again takes longer than restoring it, as it does for a large model.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import random_model  # noqa: E402
from gpu_plan import Failed  # noqa: E402
from gpu_process import Bundle, tail  # noqa: E402

FACTS = "The harbour master counted three boats near the pier before breakfast. "
FILLER = "Number {} of {}: a row of bright lanterns was painted at dusk, on the way home. "
QUESTION = "How many boats were there?"
ANSWER_TOKENS = 24
STEP_TOKENS = 16
HISTORY, OTHERS, OTHER_SENTENCES = 8, 4, 9
POOL_BLOCKS = 40  # of 32 tokens: one long session at a time
TRIES = 3


class Cluster:
    """One worker with its router and store, as `loopserve up` starts them."""

    def __init__(self, bundle, model, folder, backend, kv_dtype="bf16", pool_bytes=None, extra=()):
        self.bundle, self.folder = bundle, pathlib.Path(folder)
        self.up = ["up", "--dir", folder, "--model", model, "--workers", 1, "--port", 0,
                   "--kv-dtype", kv_dtype, f"--worker-arg=--backend={backend}",
                   f"--worker-arg=--max-step-tokens={STEP_TOKENS}", "--worker-arg=--max-batch=8",
                   "--worker-arg=--speculative-ngram=off", *extra]
        if pool_bytes:
            self.up += ["--kv-device-bytes", pool_bytes]

    def loopserve(self, *args, seconds=60):
        run = self.bundle.run(self.bundle.command("loopserve", *args), seconds)
        if run.returncode != 0:
            raise Failed(f"loopserve {args[0]} ended with {run.returncode}\n"
                         f"{tail(run.stdout + run.stderr)}\n{self.logs()}")
        return run.stdout

    def logs(self):
        path = self.folder / "logs/w1.log"
        return tail(path.read_text(encoding="utf-8", errors="replace")) if path.exists() else ""

    def __enter__(self):
        self.loopserve(*self.up, seconds=90)
        return self

    def __exit__(self, *_):
        self.bundle.run(self.bundle.command("loopserve", "down", "--dir", self.folder), 60)

    def say(self, session, message):
        """The turn as `loopserve chat --json` tells it."""
        output = self.loopserve("chat", "--dir", self.folder, "--session", session, "-m", message,
                                "--max-tokens", ANSWER_TOKENS, "--temperature", 0, "--json")
        return json.loads(output.strip().splitlines()[-1])

    def rewind(self, session, turn):
        self.loopserve("sessions", "rewind", session, "--to-turn", turn, "--dir", self.folder)

    def park(self, session):
        self.loopserve("sessions", "park", session, "--dir", self.folder)


def restored(turn, *places):
    return sum(turn["restored_tokens"][place] for place in places)


def evict(cluster, round_):
    """Other people's turns, for which the pool has room only when the session's KV goes."""
    for other in range(OTHERS):
        name = f"other-{round_}-{other}"
        text = "".join(FILLER.format(i, name) for i in range(OTHER_SENTENCES))
        cluster.say(name, text)


def same(first, turn, how):
    if turn["text"] == first["text"] and turn["completion_tokens"] == first["completion_tokens"]:
        return
    raise Failed(f"the answer {how} differs ({turn['computed_tokens']} tokens computed, "
                 f"{first['computed_tokens']} the first time): {turn['text']!r}, "
                 f"not {first['text']!r}")


def brought_back(cluster, first, how, leave, places):
    """The same turn after its history left the device; from where it came back."""
    for attempt in range(TRIES):
        cluster.rewind("told", 1)
        leave(attempt)
        turn = cluster.say("told", QUESTION)
        same(first, turn, how)
        if restored(turn, *places) > 0:
            return restored(turn, *places)
        time.sleep(0.2)
    raise Failed(f"nothing was restored {how}: {turn['restored_tokens']}, "
                 f"recomputed because: {turn['recompute_reason'] or 'unknown'}")


def hold(cluster):
    """Returns what was restored, in words."""
    cluster.say("told", FACTS * HISTORY)
    first = cluster.say("told", QUESTION)
    if restored(first, "device") == 0:
        raise Failed(f"the history was not on the device: {first['restored_tokens']}")
    host = brought_back(cluster, first, "after eviction", lambda i: evict(cluster, i), ("host",))
    disk = brought_back(cluster, first, "after parking", lambda _: cluster.park("told"),
                        ("host", "disk", "remote"))
    return (f"the same {first['completion_tokens']} tokens after restoring {host} from the host and "
            f"{disk} after parking")


def run(bundle, backend, kind="Q8_0", kv_dtype="bf16", extra=()):
    with tempfile.TemporaryDirectory(prefix="loopserve-gpu-") as folder:
        model = pathlib.Path(folder) / "model.gguf"
        shape = random_model.SHAPES["small"]
        random_model.write(model, shape, kind)
        vector = shape.head_dim * 2 if kv_dtype == "bf16" else shape.head_dim + 4
        pool = POOL_BLOCKS * 32 * shape.layers * 2 * shape.kv_heads * vector
        with Cluster(bundle, model, pathlib.Path(folder) / "cluster", backend, kv_dtype, pool,
                     extra) as cluster:
            return hold(cluster)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--type", choices=random_model.MATRIX_TYPES, default="Q8_0")
    parser.add_argument("--kv-dtype", choices=("bf16", "int8", "fp8"), default="bf16")
    options = parser.parse_args(argv)
    try:
        print(run(Bundle(options.bundle), options.backend, options.type, options.kv_dtype))
    except Failed as why:
        print(why, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
