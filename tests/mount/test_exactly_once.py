"""Exactly one document, whatever happens: a fault at each step of an upload, crossed with kill -9 of the daemon at each
point, then a new mount of what is left, and a count at the service.

A case is one file copied with cp into a session of its own. Its fault strikes one step; the daemon dies, or does not; it
is started again on the same state; the fault ends; and when nothing waits any more, the service must have the file once.
Several lanes, each with a service and a mount of its own, run side by side: they mostly wait.

Environment: SESSIONFS_CASES   how many (default 250); the whole table of combinations comes round before one repeats
             SESSIONFS_SEED    of everything left to chance; printed when a case fails
             SESSIONFS_CASE    only this one of them, by its number
"""

import base64
import itertools
import os
import random
import threading
import time

import harness
from harness import SLACK, MountCase, begin, finish, main, read, wait_for, write

CASES = int(os.environ.get("SESSIONFS_CASES") or 250)
SEED = os.environ.get("SESSIONFS_SEED") or str(random.SystemRandom().randrange(1 << 32))
ONLY = os.environ.get("SESSIONFS_CASE")
LANES = min(8, CASES)
CLOSE_TIMEOUT = 3
LATE = (CLOSE_TIMEOUT + 3) * SLACK  # a cp that takes longer has hung beyond its deadline
SETTLED = 45                        # until nothing waits, after the fault was cleared
harness.TEST_SECONDS = max(150, CASES * 2) * SLACK

# The ways to the service: what the mount is told, and the steps its files go through, in order.
WAYS = {
    "by session": ({"naming": "session"}, ("sign", "put", "upload")),
    "by workspace": ({"naming": "workspace"}, ("sign", "put", "create_document", "attach")),
    "known bytes": ({"naming": "session"}, ("attach",)),  # another session of the workspace has them
}
if harness.SERVICE == "rossum":
    WAYS = {
        "multipart": ({}, ("rossum_upload", "rossum_task", "rossum_get_upload", "rossum_annotations_by_id")),
        "raw": ({"upload_form": "raw"}, ("rossum_upload_named", "rossum_task", "rossum_get_upload", "rossum_annotations_by_id")),
    }
# Those that carry the bytes, and those in which nothing may be made twice even where the service would not notice.
CARRIERS = ("put", "rossum_upload", "rossum_upload_named")
# An answer without a body cannot be cut. And a 429 says that nothing was done: where bytes are a document as soon as they came, one
# that lies is believed.
SENSELESS = [("put", "cut answer"), ("rossum_upload", "429 after"), ("rossum_upload_named", "429 after")]
UNNOTICED = ("by session", "multipart", "raw")
# Fault rules of the sandbox; the step is added to each.
FAULTS = {
    "none": None,
    "closed unread": {"action": "close", "when": "unread"},
    "closed before": {"action": "close"},
    "reset before": {"action": "close", "reset": True},
    "closed after": {"action": "close", "when": "after"},
    "500 before": {"status": 500},
    "500 after": {"status": 500, "when": "after"},
    "502 before": {"status": 502, "body": "<html>Bad gateway</html>"},
    "502 after": {"status": 502, "body": "<html>Bad gateway</html>", "when": "after"},
    "503 before": {"status": 503},
    "503 after": {"status": 503, "when": "after"},
    "429 before": {"status": 429, "headers": {"Retry-After": "1"}},
    "429 after": {"status": 429, "when": "after"},
    "stalled before": {"action": "stall"},
    "stalled after": {"action": "stall", "when": "after"},
    "cut answer": {"action": "truncate", "when": "after", "bytes": 9},
    "garbled answer": {"action": "garble", "when": "after"},
}
# These strike once: a second one is final, as it has to be.
ONCE = {
    "expired link": ("put", None),
    "403 from storage": ("put", {"status": 403, "body": "<Error><Code>AccessDenied</Code></Error>"}),
    "used-up key": ("upload", {"status": 422, "body": {"message": "The keys.0 is invalid.",
                                                       "errors": {"keys.0": ["The keys.0 is invalid."]}}}),
}
CRASHES = ("never", "step began", "step answered", "mid put", "close waits")


def table():
    """Every combination that makes sense."""
    for (way, (_, steps)), crash in itertools.product(WAYS.items(), CRASHES):
        if crash == "mid put" and not set(CARRIERS) & set(steps):
            continue
        for step, fault in itertools.product(steps, FAULTS):
            if (step, fault) not in SENSELESS:
                yield way, step, fault, crash
        for fault, (step, _) in ONCE.items():
            if step in steps:
                yield way, step, fault, crash


class Case:
    def __init__(self, number, combination):
        self.number = number
        self.way, self.step, self.fault, self.crash = combination
        self.chance = random.Random("%s/%d" % (SEED, number))
        self.background = self.chance.random() < 0.4
        # How often the fault strikes; 0: until it is cleared.
        self.times = 1 if self.fault in ONCE else self.chance.choice((1, 1, 2, 0))
        if self.fault.startswith("429"):
            self.times = self.times or 3  # what waits for a place within the limit waits for as long as it takes
        self.crashes_twice = self.crash != "never" and self.chance.random() < 0.2
        self.fresh_state = self.chance.random() < 0.15
        self.size = 300_000 if self.crash == "mid put" else self.chance.choice((1_200, 5_000, 70_000))
        self.name = self.chance.choice(("invoice.pdf", "Rechnung März.pdf", "a b.pdf", "scan.PDF"))
        self.data = b"%%PDF-1.4\n%% case %d of %s\n" % (number, SEED.encode()) + self.chance.randbytes(self.size)

    def __str__(self):
        return "case %d: %s, %s at %s x%s, crash %s%s, %s%s, %d bytes" % (
            self.number, self.way, self.fault, self.step, self.times or "ever", self.crash,
            " twice" if self.crashes_twice else "", "background" if self.background else "close",
            ", fresh state" if self.fresh_state else "", self.size)


class Lane:
    """A service and, one after another, mounts of it."""

    def __init__(self, test, number, cases):
        self.test, self.number, self.cases = test, number, cases
        self.folder = test.new_folder()
        self.sandbox = test.new_sandbox(self.folder)
        self.library = self.sandbox.session("elsewhere")
        self.sessions = {c.number: self.sandbox.session("Case %d" % c.number) for c in cases}
        self.states = 0
        self.mount = None
        self.options = None

    # -- the mount

    def options_of(self, case):
        return {**WAYS[case.way][0], "upload": "background" if case.background else "close"}

    def ready(self, case):
        """A mount with the options of the case."""
        options = self.options_of(case)
        if self.mount is not None and (options != self.options or case.fresh_state):
            # While another lane starts a program, the child has our open files for a moment.
            wait_for(lambda: self.mount.unmount().status == 0, 10, "unmounted")
            self.mount.stop()
            self.mount = None
        if self.mount is None:
            if case.fresh_state or self.states == 0:
                self.states += 1
            place = os.path.join(self.folder, "mount-%d" % self.states)
            os.makedirs(place, exist_ok=True)
            self.options = options
            self.mount = self.test.new_mount(self.sandbox, place, [self.library, *self.sessions.values()], ttl="10m",
                                             close_timeout="%ds" % CLOSE_TIMEOUT, **options)
            self.mount.start()
        return self.mount

    def restart(self):
        self.mount.kill()
        self.mount.start()

    def dir_of(self, case):
        return os.path.join(self.mount.path, "Case %d" % case.number)

    # -- a case

    def requests(self, case, since, step=None):
        return [r for r in self.sandbox.requests(since) if r["route"] == (step or case.step)]

    def carrier(self, case):
        return next(step for step in WAYS[case.way][1] if step in CARRIERS)

    def arm(self, case):
        if case.crash == "mid put":
            self.sandbox.fault(route=self.carrier(case), action="slow_request", bytes_per_s=150_000)
        if case.fault == "expired link":
            self.sandbox.set(sign__expires_ms=1)
            # One link alone: a second expired one in a row would be final. The next waits until links live again.
            self.sandbox.fault(route="sign", nth=2, action="stall", ms=1000)
            return
        rule = ONCE[case.fault][1] if case.fault in ONCE else FAULTS[case.fault]
        if rule is not None:
            self.sandbox.fault(route=case.step, times=case.times, **rule)
        if case.crash in ("step began", "close waits"):
            # Holds the step once the fault has struck, or at once: something is under way when the daemon dies.
            self.sandbox.fault(route=case.step, action="stall", ms=1500, when=case.chance.choice(("before", "after")))

    def disarm(self):
        self.sandbox.clear_faults()
        self.sandbox.set(sign__expires_ms=300000)

    def crash(self, case, since, cp):
        """Kills the daemon at the point the case names."""
        step = self.carrier(case) if case.crash == "mid put" else case.step
        reached = {
            "step began": lambda: self.requests(case, since, step),
            "step answered": lambda: [r for r in self.requests(case, since, step) if r["done"]],
            "mid put": lambda: self.requests(case, since, step),
            "close waits": lambda: cp.poll() is not None or self.sandbox.last_request() > since,
        }[case.crash]
        end = time.monotonic() + 6 * SLACK  # a stalled step is never answered; then it dies in the middle of that
        while not reached() and time.monotonic() < end:
            time.sleep(0.003)
        time.sleep(case.chance.choice((0, 0, 0.01, 0.05, 0.3)))
        self.mount.kill()

    def wait_settled(self, case):
        state = {}

        def settled():
            state.update(self.mount.status())
            return state["waiting"] == 0 and state["scratch"] == 0
        try:
            wait_for(settled, SETTLED, "nothing waits")
        except AssertionError as e:
            raise AssertionError("%s: %s" % (e, state)) from None
        return state

    def run(self, case, tally):
        mount = self.ready(case)
        folder = self.dir_of(case)
        wait_for(lambda: os.path.isdir(folder), 20, "its folder shows")
        session = self.sessions[case.number]
        # By session nothing may be sent twice even where the service would not notice.
        self.sandbox.set(dedup=case.way not in UNNOTICED)
        if case.way == "known bytes":
            self.sandbox.document(self.library, "known-%d.pdf" % case.number, base64=base64.b64encode(case.data).decode())
            if mount.command("refresh", os.path.join(mount.path, "elsewhere")).status != 0:
                raise AssertionError("refresh failed")
        library_before = self.sandbox.count_all()
        source = write(os.path.join(self.folder, case.name), case.data)
        since = self.sandbox.last_request()
        self.arm(case)
        began = time.monotonic()
        cp = begin(["cp", source, os.path.join(folder, case.name)])
        try:
            if case.fault == "expired link":
                wait_for(lambda: [r for r in self.requests(case, since, "sign") if r["done"]], 10, "signed")
                self.sandbox.set(sign__expires_ms=300000)
            if case.crash != "never":
                self.crash(case, since, cp)
            done = finish(cp, LATE / SLACK + 30)
        except harness.Hung:
            tally["late"].append(str(case))
            raise
        took = time.monotonic() - began
        # An answer of the service tells that the bytes and the job were safe before the daemon died.
        asked = [r for r in self.sandbox.requests(since) if r["route"] in WAYS[case.way][1]]
        accepted = done.status == 0 or bool(asked)
        if took > LATE + (8 * SLACK if case.crash != "never" else 0):
            tally["late"].append(str(case))
            raise AssertionError("cp took %.1f s: %s" % (took, done))
        if case.crash != "never":
            mount.start()
            if case.crashes_twice:
                time.sleep(case.chance.random() * 0.5)
                self.restart()
        if case.times == 0:
            time.sleep(case.chance.random() * 1.5)
        self.disarm()
        if case.crash == "never" and case.fault in ("none", *ONCE) and done.status != 0:
            raise AssertionError("cp failed: %s" % done)
        if case.chance.random() < 0.5:
            mount.command("retry", "--all")
        state = self.wait_settled(case)
        if state["failed"]:
            raise AssertionError("refused for good: %s" % state)
        self.count(case, session, accepted, library_before, done, tally)

    def count(self, case, session, accepted, library_before, done, tally):
        there = self.sandbox.documents(session)
        wanted = harness.sha256_of(case.data)
        if len(there) > 1:
            tally["doubled"].append(str(case))
            raise AssertionError("%d documents: %s" % (len(there), there))
        if not there:
            if accepted:
                tally["lost"].append(str(case))
                raise AssertionError("nothing arrived: %s" % done)
            tally["absent"] += 1
        elif there[0]["sha256"] != wanted:
            tally["lost"].append(str(case))
            raise AssertionError("other bytes arrived: %s" % there)
        if there and case.way in UNNOTICED:
            made = self.sandbox.count_all() - library_before
            if made != 1:
                tally["doubled"].append(str(case))
                raise AssertionError("%d documents were made at the service" % made)
        folder = self.dir_of(case)
        names = wait_for(lambda: os.listdir(folder) if there else [""], 10, "it is listed") if there else os.listdir(folder)
        if names != [case.name] * len(there):
            raise AssertionError("listed: %s" % names)
        if there and case.chance.random() < 0.3 and read(os.path.join(folder, case.name)) != case.data:
            raise AssertionError("read back differently")


class ExactlyOnce(MountCase):
    def test_a_fault_at_each_step_crossed_with_a_crash_at_each_point_leaves_one_document(self):
        self.expects(r".")
        combinations = list(table())
        random.Random(SEED).shuffle(combinations)
        cases = [Case(i, combinations[i % len(combinations)]) for i in range(CASES)]
        if ONLY:
            cases = [c for c in cases if c.number == int(ONLY)]
        # A lane keeps to one way for a while: other options want another mount.
        cases.sort(key=lambda c: (c.way, c.background))
        count = min(LANES, len(cases))
        share = -(-len(cases) // count)
        tally = {"run": 0, "lost": [], "doubled": [], "late": [], "absent": 0}
        wrong, lock = [], threading.Lock()
        lanes = [Lane(self, i, cases[i * share:(i + 1) * share]) for i in range(count)]

        def work(lane):
            for case in lane.cases:
                try:
                    lane.run(case, tally)
                except Exception as e:  # told with the case it happened in; the next ones want a mount in order
                    with lock:
                        wrong.append("%s\n  %s: %s" % (case, type(e).__name__, e))
                    try:
                        lane.disarm()
                        lane.mount.kill()
                    except Exception as e:
                        wrong.append("lane %d is given up: %s" % (lane.number, e))
                        return
                    lane.mount = None
                    lane.states += 1
                tally["run"] += 1
        threads = [threading.Thread(target=work, args=(lane,), daemon=True) for lane in lanes]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        print("     cases %d of %d combinations, lost %d, doubled %d, late %d (never accepted and absent %d), seed %s" % (
            tally["run"], len(combinations), len(tally["lost"]), len(tally["doubled"]), len(tally["late"]), tally["absent"], SEED),
            flush=True)
        if wrong:
            self.fail("SESSIONFS_SEED=%s: %d cases failed\n%s" % (SEED, len(wrong), "\n".join(wrong)))


if __name__ == "__main__":
    main()
