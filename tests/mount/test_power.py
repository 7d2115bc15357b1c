"""Power cuts in place of kill -9: the state folder lies on a file system of ours that forgets what was not fsynced
(tests/powercut). At a moment of chance the power goes: nothing of the disk answers any more, the daemon is killed, the file
system comes up with what was durable, and the next mount goes on with that. In the end every file whose close() returned 0
is at the service exactly once, and no file is there in part.

Environment: SESSIONFS_POWER_CASES   how many (default 40)
             SESSIONFS_SEED          of everything left to chance; printed when a case fails
             SESSIONFS_CASE          only this one of them, by its number
"""

import os
import random
import select
import subprocess
import threading
import time
import unittest

import harness
from harness import BUILD, MountCase, begin, environment, finish, main, run, wait_for, write

CASES = int(os.environ.get("SESSIONFS_POWER_CASES") or 40)
SEED = os.environ.get("SESSIONFS_SEED") or str(random.SystemRandom().randrange(1 << 32))
ONLY = os.environ.get("SESSIONFS_CASE")
LANES = min(4, CASES)
POWERCUT = os.path.join(BUILD, "tests", "powercut", "powercut")
SETTLED = 45
harness.TEST_SECONDS = max(150, CASES * 5) * harness.SLACK


class Disk:
    """tests/powercut, mounted."""

    def __init__(self, path, *options):
        self.path = path
        os.makedirs(path, exist_ok=True)
        self.process = subprocess.Popen([POWERCUT, path, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        env=environment(), start_new_session=True)
        self.hear("up")
        self.lost_files = self.lost_names = 0

    def say(self, text):
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, word):
        line = self.process.stdout.readline().decode().strip()
        if not line.startswith(word):
            raise AssertionError("powercut says '%s', '%s' was to come" % (line, word))
        return line

    def arm(self, changes, seed):
        self.say("arm %d %d" % (changes, seed))
        self.hear("armed")

    def has_cut(self):
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def cut(self, seed):
        """Now, if it was not cut before."""
        if not self.has_cut():
            self.say("cut %d" % seed)
        _, files, names = self.hear("cut").split()
        self.lost_files += int(files)
        self.lost_names += int(names)

    def boot(self):
        """Whoever wrote there must have been killed."""
        self.say("boot")
        self.hear("up")

    def end(self):
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        run(["fusermount3", "-u", "-z", self.path], 20)


class Case:
    def __init__(self, number):
        self.number = number
        self.chance = random.Random("%s/%d" % (SEED, number))
        self.count = self.chance.choice((1, 2, 5, 9))
        # What is lost: all that was not fsynced, or what a disk happened not to get to.
        self.cuts = [(self.chance.choice((self.chance.randrange(1, 25), self.chance.randrange(1, 120), 0)),
                      self.chance.choice((0, self.chance.randrange(1, 1 << 62)))) for _ in range(self.chance.choice((1, 1, 2, 3)))]
        self.latency_ms = self.chance.choice((0, 0, 20))
        self.names = ["paper %d.pdf" % i for i in range(self.count)]
        self.data = [b"%%PDF-1.4\n%% case %d, file %d of %s\n" % (number, i, SEED.encode()) +
                     self.chance.randbytes(self.chance.choice((300, 5_000, 90_000))) for i in range(self.count)]

    def __str__(self):
        return "case %d: %d files, power cut after %s changes" % (
            self.number, self.count, ", then ".join("%d%s" % (n, " (all lost)" if seed == 0 else "") for n, seed in self.cuts))


class Lane:
    def __init__(self, test, number, cases):
        self.test, self.cases = test, cases
        self.folder = test.new_folder()
        self.sandbox = test.new_sandbox(self.folder)
        # Half of the disks make a new file's name durable with its bytes, as ext4 does; the others promise no more than POSIX.
        self.disk = Disk(os.path.join(self.folder, "disk"), "--entries=%s" % ("file" if number % 2 else "dir"))
        self.sessions = {c.number: self.sandbox.session("Case %d" % c.number) for c in cases}
        os.mkdir(os.path.join(self.disk.path, "state"), 0o700)
        self.disk.say("sync")
        self.disk.hear("synced")
        self.mount = test.new_mount(self.sandbox, self.folder, list(self.sessions.values()), upload="background", ttl="10m",
                                    state_dir=os.path.join(self.disk.path, "state"))
        self.mount.start()

    def end(self):
        self.mount.kill()
        self.disk.end()

    def power_fails(self, seed):
        self.disk.cut(seed)
        process = self.mount.process
        process.kill()
        self.disk.boot()  # a daemon in the middle of an fsync ends only now
        self.mount.kill()

    def start_again(self):
        """Where the power may go while it comes up."""
        self.mount.start(wait=False)
        end = time.monotonic() + 20 * harness.SLACK
        while time.monotonic() < end and not self.disk.has_cut():
            if self.mount.is_up():
                return
            time.sleep(0.01)

    def run(self, case):
        folder = os.path.join(self.mount.path, "Case %d" % case.number)
        wait_for(lambda: os.path.isdir(folder), 20, "its folder shows")
        self.sandbox.set(latency_ms=case.latency_ms)
        sources = [write(os.path.join(self.folder, "%d %s" % (case.number, n)), d) for n, d in zip(case.names, case.data)]
        changes, seed = case.cuts[0]
        if changes:
            self.disk.arm(changes, seed)
        copies = []
        for source, name in zip(sources, case.names):
            copies.append(begin(["cp", source, os.path.join(folder, name)]))
            time.sleep(case.chance.choice((0, 0, 0.005)))
        end = time.monotonic() + case.chance.choice((0.05, 0.3, 1.0))
        while time.monotonic() < end and not self.disk.has_cut():
            time.sleep(0.002)
        self.power_fails(seed)
        accepted = [finish(p, 30).status == 0 for p in copies]
        for changes, seed in case.cuts[1:]:
            if changes:
                self.disk.arm(changes, seed)
            self.start_again()
            end = time.monotonic() + case.chance.random()
            while time.monotonic() < end and not self.disk.has_cut():
                time.sleep(0.002)
            self.power_fails(seed)
        self.mount.start()
        for source in sources:
            os.unlink(source)
        return self.count(case, folder, accepted)

    def count(self, case, folder, accepted):
        state = {}

        def settled():
            state.update(self.mount.status())
            return state["waiting"] == 0
        wait_for(settled, SETTLED, "nothing waits")
        if state["failed"]:
            raise AssertionError("refused for good: %s" % state)
        there = self.sandbox.hashes(self.sessions[case.number])
        wanted = list(map(harness.sha256_of, case.data))
        doubled = [h for h in set(there) if there.count(h) > 1]
        partial = [h for h in there if h not in wanted]
        lost = [n for n, h, a in zip(case.names, wanted, accepted) if a and h not in there]
        if doubled or partial or lost:
            raise AssertionError("lost %s, doubled %s, in part %s; accepted %s" % (lost, doubled, partial, accepted))
        listed = wait_for(lambda: len(os.listdir(folder)) >= len(there) and sorted(os.listdir(folder)), 10, "all are listed") \
            if there else sorted(os.listdir(folder))
        names = sorted(n for n, h in zip(case.names, wanted) if h in there)
        # A document made in the moment the power went may come back under the service's name.
        if len(listed) != len(there):
            raise AssertionError("listed %s, there are %s" % (listed, names))
        return sum(accepted), len(there), sum(n not in listed for n, a, h in zip(case.names, accepted, wanted) if a and h in there)


@unittest.skipUnless(os.path.exists(POWERCUT), "not built: %s" % POWERCUT)
class PowerCut(MountCase):
    def test_after_a_power_cut_what_was_closed_is_there_once_and_nothing_is_there_in_part(self):
        self.expects(r".")
        cases = [Case(i) for i in range(CASES) if not ONLY or i == int(ONLY)]
        lanes = [Lane(self, i, cases[i::LANES]) for i in range(min(LANES, len(cases)))]
        wrong, sums = [], [0, 0, 0, 0]

        def work(lane):
            for case in lane.cases:
                try:
                    found = lane.run(case)
                    for i, n in enumerate((1, *found)):
                        sums[i] += n
                except Exception as e:
                    wrong.append("%s\n  %s: %s\n%s" % (case, type(e).__name__, e, lane.mount.log()[-1500:]))
                    return  # the lane's state is not what the next case expects
        threads = [threading.Thread(target=work, args=(lane,), daemon=True) for lane in lanes]
        try:
            for t in threads:
                t.start()
            for t in threads:
                t.join()
        finally:
            for lane in lanes:
                lane.end()
        print("     cases %d, files closed with 0: %d, at the service %d, lost 0, doubled 0, renamed %d; the disks forgot the "
              "bytes of %d files and %d changes of names; seed %s" % (
                  sums[0], sums[1], sums[2], sums[3], sum(x.disk.lost_files for x in lanes), sum(x.disk.lost_names for x in lanes),
                  SEED), flush=True)
        if wrong:
            self.fail("SESSIONFS_SEED=%s: %d cases failed\n%s" % (SEED, len(wrong), "\n".join(wrong)))

    def test_on_a_disk_that_lies_about_fsync_the_same_is_lost(self):
        self.expects(r".")
        folder = self.new_folder()
        sandbox = self.new_sandbox(folder)
        session = sandbox.session("Q1")
        disk = Disk(os.path.join(folder, "disk"), "--lies")
        mount = self.new_mount(sandbox, folder, [session], upload="background", state_dir=os.path.join(disk.path, "state"))
        try:
            mount.start().names_seen(1)
            sandbox.fault(route="sign", action="stall", times=0)
            source = write(os.path.join(folder, "paper.pdf"), harness.paper_bytes())
            self.assertEqual(0, run(["cp", source, os.path.join(mount.path, "Q1")]).status)
            disk.cut(0)
            mount.process.kill()
            disk.boot()
            mount.kill()
            sandbox.clear_faults()
            mount.start().names_seen(1)
            self.assertEqual(0, mount.status()["waiting"])
            self.assertEqual([], sandbox.documents(session))
        finally:
            mount.kill()
            disk.end()


if __name__ == "__main__":
    main()
