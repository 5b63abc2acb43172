"""A trace of conversations at a time, the same for LoopServe and llama-server.

Eight sessions; in each, turns arrive as a Poisson process. A turn is sent when it arrives, or when
the answer before it has ended, if that is later. Histories grow from turn to turn; every answer has
the same length. The two servers get the same arrival times, texts and numbers of tokens in turns.
`mixed_client.py` plays it, in a process of its own.
"""

import dataclasses
import json
import pathlib
import random
import statistics
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent

SESSIONS, TURNS, ANSWER_TOKENS = 8, 6, 64
FIRST_WORDS, LATER_WORDS = (100, 1200), (20, 300)
GAP_S = 6.0  # mean time between two turns of a session
SEED = 20240607
# metric: (unit, whether less is better)
METRICS = {
    "throughput": ("tokens/s", False),
    "ttft_p50": ("ms", True),
    "ttft_p99": ("ms", True),
    "itl_p50": ("ms", True),
    "itl_p99": ("ms", True),
}
# Common words: one token each, with the blank before it.
WORDS = ("the people water house light small number point world school state family system group "
         "problem hand part place case week company program question work night home room mother "
         "area money story fact month right study book word business issue side kind head service "
         "friend father power hour game line end member law car city community name").split()


@dataclasses.dataclass(frozen=True)
class PlannedTurn:
    session: int
    arrival: float  # seconds after the start
    text: str


@dataclasses.dataclass
class PlayedTurn:
    """Times in seconds on one clock; `gaps` are those between tokens."""

    sent: float
    first: float
    last: float
    gaps: list
    prompt_tokens: int
    answer_tokens: int


def plan(round_number, sessions=SESSIONS, turns=TURNS, gap=GAP_S, seed=SEED):
    """Every round has the same arrivals and lengths but other words, so that no cache knows them."""
    times, words = random.Random(seed), random.Random(f"{seed} {round_number}")
    planned = []
    for session in range(sessions):
        at = times.uniform(0, gap)
        for turn in range(turns):
            low, high = FIRST_WORDS if turn == 0 else LATER_WORDS
            count = times.randint(low, high)
            planned.append(PlannedTurn(session, at, " ".join(words.choices(WORDS, k=count))))
            at += times.expovariate(1 / gap)
    return planned


def percentile(values, share):
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]


def spread(gap, tokens):
    """A gap in which several tokens came counts once for each, as its share."""
    return [gap / tokens] * tokens


def metrics(turns):
    """{metric: value} of one round."""
    gaps = [gap * 1000 for turn in turns for gap in turn.gaps]
    first = [(turn.first - turn.sent) * 1000 for turn in turns]
    duration = max(turn.last for turn in turns) - min(turn.sent for turn in turns)
    return {
        "throughput": sum(turn.answer_tokens for turn in turns) / duration,
        "ttft_p50": statistics.median(first),
        "ttft_p99": percentile(first, 0.99),
        "itl_p50": statistics.median(gaps),
        "itl_p99": percentile(gaps, 0.99),
    }


def measure(options, model):
    """{"ours": {metric: [a value per round]}, "peer": ..., "settings": ..., "note": ...}"""
    command = [ROOT / "build/venv/bin/python", HERE / "mixed_client.py", f"--model={model}",
               f"--bin-dir={options.bin_dir}", f"--threads={options.threads}",
               f"--rounds={options.trace_rounds}"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout)
