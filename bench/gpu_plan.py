"""Runs the parts of a check within a time budget, the most important first, and tells what came of each.

    plan = Plan(480, say=print)
    plan.run([Step("tests", 60, run_tests), Step("limits", 15, measure, needs=("tests",))])
    print(plan.table())

A part that fails, or for which there is no time left, does not stop the others.
"""

import dataclasses
import time
import traceback

import report

PASS, FAIL, SKIPPED = "PASS", "FAIL", "skipped"


class Failed(Exception):
    """A part found something wrong; the message says what."""


class Skipped(Exception):
    """A part has nothing to work with here; the message says what it lacks."""


@dataclasses.dataclass(frozen=True)
class Step:
    """`run` returns a few words on what it found, or nothing. It is started when `seconds` are left,
    if the steps that it needs have passed."""

    name: str
    seconds: float
    run: object
    needs: tuple = ()
    quick: bool = False  # belongs to the reduced set


@dataclasses.dataclass(frozen=True)
class Outcome:
    name: str
    result: str
    seconds: float
    words: str


class Plan:
    def __init__(self, budget, say, clock=time.monotonic, after=None):
        """`after`: called after every step, e.g. to write what there is."""
        self.budget, self.say, self.clock, self.after = budget, say, clock, after
        self.start = clock()
        self.outcomes = []

    def elapsed(self):
        return self.clock() - self.start

    def left(self):
        return self.budget - self.elapsed()

    @property
    def ok(self):
        return not any(outcome.result == FAIL for outcome in self.outcomes)

    def run(self, steps):
        for step in steps:
            begin = self.clock()
            result, words = self._try(step)
            outcome = Outcome(step.name, result, self.clock() - begin, words)
            self.outcomes.append(outcome)
            self.say(f"[{self.elapsed():5.0f} s] {step.name}: {result} {words}".rstrip())
            if self.after:
                self.after()

    def _try(self, step):
        passed = {outcome.name for outcome in self.outcomes if outcome.result == PASS}
        missing = [name for name in step.needs if name not in passed]
        if missing:
            return SKIPPED, f"needs {', '.join(missing)}"
        if step.seconds > self.left():
            return SKIPPED, f"takes {step.seconds:.0f} s, {max(0, self.left()):.0f} s are left"
        self.say(f"[{self.elapsed():5.0f} s] {step.name} ...")
        try:
            return PASS, step.run() or ""
        except Skipped as why:
            return SKIPPED, str(why)
        except Failed as why:
            return FAIL, str(why)
        except Exception as error:  # pylint: disable=broad-except
            self.say(traceback.format_exc())
            return FAIL, f"{type(error).__name__}: {error}"

    def table(self):
        lines = [(o.name, o.result, f"{o.seconds:.1f}", o.words.splitlines()[0][:100] if o.words else "")
                 for o in self.outcomes]
        # The last column is text: to the left.
        width = max([len(words) for *_, words in lines] + [0])
        return report.table(("check", "result", "seconds", "what"),
                            [(*first, words.ljust(width)) for *first, words in lines])


def chosen(steps, quick=False, words=None):
    """The steps of the reduced set, or all; with `words` only those whose name contains one."""
    return [step for step in steps if (step.quick or not quick)
            and (not words or any(word in step.name for word in words))]
