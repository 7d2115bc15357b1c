"""How the benchmarks time programs and what they print: a line for each figure, with what was measured beside it in the same run, the
ratio, and the target. Figures within one run can be compared; absolute times tell more of the machine."""

import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "mount"))
from harness import run  # noqa: E402


def soon(what, seconds=30):
    """wait_for() looks 30 times a second, which is too coarse here."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise SystemExit("bench: it does not come")
        time.sleep(0.001)


def quiet(command, seconds=900):
    done = run(command, seconds)
    if done.status != 0:
        raise SystemExit("bench: %r" % done)
    return done


def timed(command, seconds=900):
    began = time.monotonic()  # before it is started: most of these take milliseconds
    quiet(command, seconds)
    return time.monotonic() - began


class Table:
    def __init__(self, only):
        self.only, self.rows = only, 0

    def wants(self, part):
        return not self.only or part in self.only

    def row(self, what, ours, against=(), target=None, least=None, unit="s", is_ratio=True):
        """against: (word, value) pairs; target (at most) or least is of the ratio to the first of them, or, without any or unless
        is_ratio, of the value itself."""
        if self.rows == 0:
            print("%-52s %12s  %s" % ("", "sessionfs", "beside it (ratio)"))
        self.rows += 1
        value = "%.4g %s" % (ours, unit)
        beside = ", ".join("%s %.4g (%.2f)" % (word, other, ours / other if other else 0) for word, other in against)
        wish = ""
        seen = ours / against[0][1] if is_ratio and against and against[0][1] else ours
        if target is not None:
            wish = "  [target %s: %s]" % (target, "met" if seen <= target else "MISSED")
        elif least is not None:
            wish = "  [target at least %s: %s]" % (least, "met" if seen >= least else "MISSED")
        print("%-52s %12s  %s%s" % (what, value, beside, wish), flush=True)
