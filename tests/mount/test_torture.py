"""Calls of the daemon that fail while people copy files in: the nth malloc, write, fsync, open, SQLite step after a mount is up
fails, once or from then on. No system call hangs and nothing crashes; what write, fsync, close or rename said holds: after the next
mount each file that was accepted is at the service once with all its bytes, one that was removed is not, and none is there in part.
tests/test_torture.c does the same, and every point of it, to queue and spool by themselves.

Environment: SESSIONFS_TORTURE_CASES  how many (default 12)
             SESSIONFS_SEED           of everything left to chance; printed when a case fails
             SESSIONFS_CASE           only this one of them, by its number
"""

import os
import random
import socket
import subprocess
import threading
import time
import unittest

import harness
from harness import BUILD, Mount, MountCase, environment, main, run, sha256_of, wait_for

CASES = int(os.environ.get("SESSIONFS_TORTURE_CASES") or 12)
SEED = os.environ.get("SESSIONFS_SEED") or str(random.SystemRandom().randrange(1 << 32))
ONLY = os.environ.get("SESSIONFS_CASE")
LANES = min(2, CASES)
DAEMON = os.path.join(BUILD, "tests", "sessionfs_failing")
SETTLED = 45
PATIENCE = 45   # rename 15 s, close_timeout 3 s: several in a row
harness.TEST_SECONDS = max(200, CASES * 20) * harness.SLACK


class FailingMount(Mount):
    def start(self, *more, wait=True):
        ours, theirs = socket.socketpair()
        log = open(self.log_path, "ab")
        self.process = subprocess.Popen(
            [DAEMON, "test", self.path, "-f", *more], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=environment({**self.environment(), "FAIL_ONCE_FD": str(theirs.fileno())}, home=self.folder),
            pass_fds=[theirs.fileno()], cwd="/")
        log.close()
        theirs.close()
        self.words = ours.makefile("rw", encoding="ascii", errors="replace")
        ours.close()
        wait_for(self.is_up, 15, "mounted")
        return self

    def say(self, text):
        """What it answers, or None when it has ended."""
        try:
            self.words.write(text + "\n")
            self.words.flush()
            return self.words.readline().strip() or None
        except OSError:
            return None


class Case:
    def __init__(self, number):
        self.number = number
        self.chance = random.Random("%s/%d" % (SEED, number))
        self.stays = self.chance.random() < 0.4
        self.of = "database" if self.chance.random() < 0.25 else "ours"
        self.share = self.chance.random()  # of all points
        self.upload = self.chance.choice(("close", "close", "background"))
        self.data = {name: self.chance.randbytes(size) for name, size in (
            ("copied.pdf", 300000), ("renamed.pdf", 70000), ("removed.pdf", 5000), ("again.pdf", 9000))}
        self.said, self.errors = {}, {}

    def __str__(self):
        return "case %d (%s, %s%s, upload=%s)" % (self.number, self.of, "from then on" if self.stays else "once", "", self.upload)

    def keep(self, what, call):
        """What the program was told."""
        self.doing = what
        try:
            call()
            self.said[what] = True
        except OSError as e:
            self.said[what] = False
            self.errors[what] = e.strerror

    def copy(self, path, data, fsync=False):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            for at in range(0, len(data), 65536):
                os.write(fd, data[at:at + 65536])
            if fsync:
                os.fsync(fd)
        except OSError:
            try:
                os.close(fd)
            except OSError:
                pass
            raise
        os.close(fd)

    def work(self, folder):
        self.keep("copied.pdf", lambda: self.copy(os.path.join(folder, "copied.pdf"), self.data["copied.pdf"]))
        scratch = os.path.join(folder, ".renamed.pdf.Xy3Zu8")
        self.keep("scratch", lambda: self.copy(scratch, self.data["renamed.pdf"], fsync=True))
        if self.said["scratch"]:
            self.keep("renamed.pdf", lambda: os.rename(scratch, os.path.join(folder, "renamed.pdf")))
        self.keep("removed.pdf", lambda: self.copy(os.path.join(folder, "removed.pdf"), self.data["removed.pdf"]))
        self.keep("rm", lambda: os.unlink(os.path.join(folder, "removed.pdf")))
        self.keep("again.pdf", lambda: self.copy(os.path.join(folder, "again.pdf"), self.data["again.pdf"]))
        self.keep("ls", lambda: os.listdir(folder))
        self.keep("cat", lambda: self.read_back(folder))

    def read_back(self, folder):
        for name in ("copied.pdf", "again.pdf"):
            if self.said.get(name):
                with open(os.path.join(folder, name), "rb") as f:
                    if f.read() != self.data[name]:
                        self.said["read"] = "%s reads as something else" % name


class Lane:
    def __init__(self, test, cases):
        self.cases = cases
        self.folder = test.new_folder()
        self.sandbox = test.new_sandbox(self.folder)
        sessions = {c.number: self.sandbox.session("Case %d" % c.number) for c in cases}
        self.sessions = {**sessions, -1: self.sandbox.session("Case -1")}
        self.test = test
        self.mounts = {}
        for upload in ("close", "background"):
            options = dict(upload=upload, ttl="10m", close_timeout="3s")
            self.mounts[upload] = (FailingMount(self.sandbox, self.folder, list(self.sessions.values()), **options),
                                   Mount(self.sandbox, self.folder, list(self.sessions.values()), **options))
        self.points = None

    def log(self):
        return self.mounts["close"][0].log()

    def faulty_life(self, case, nth):
        mount = self.mounts[case.upload][0]
        mount.write_config()
        mount.start().names_seen(len(self.sessions))
        folder = os.path.join(mount.path, "Case %d" % case.number)
        if mount.say("arm %s %d %s" % (case.of, nth, "stays" if case.stays else "once")) != "armed":
            raise AssertionError("it does not hear")
        worker = threading.Thread(target=case.work, args=(folder,), daemon=True)
        worker.start()
        worker.join(PATIENCE * harness.SLACK)
        hangs = worker.is_alive()
        doing = case.doing
        answer = mount.say("disarm")
        ended = mount.process.poll()
        if hangs or (ended is not None and ended < 0):
            mount.kill()
            raise AssertionError("'%s' hangs after %s: %s %s" % (doing, answer, case.said, case.errors) if hangs else "it died of signal %d" % -ended)
        if ended is None:
            ended = mount.stop()
            if ended != 0:
                raise AssertionError("after %s it ended with %d" % (answer, ended))
        else:
            mount.process = None
            run(["fusermount3", "-u", "-z", mount.path], 20)
        mount.words.close()
        if answer is None:
            raise AssertionError("it ended (%s) in the middle" % ended)
        points, fails, which = answer.split(" ", 2)
        return int(points), int(fails), which

    def run(self, case):
        if self.points is None:  # how many there are
            self.points = {}
            for of in ("ours", "database"):
                probe = Case(-1)
                probe.of, probe.upload, probe.stays = of, "close", False
                self.points[of] = self.faulty_life(probe, 0)[0]
                if not all(probe.said.values()) and of == "ours":
                    raise AssertionError("without a fault: %s" % probe.errors)
        nth = 1 + int(case.share * self.points[case.of])
        case.which = self.faulty_life(case, nth)
        if case.said.get("read"):
            raise AssertionError("%s: %s" % (case.which, case.said["read"]))
        mount = self.mounts[case.upload][1]
        mount.start().names_seen(len(self.sessions))
        try:
            return self.count(case, mount)
        finally:
            mount.stop()

    def count(self, case, mount):
        folder, state = os.path.join(mount.path, "Case %d" % case.number), {}

        def settled():
            state.update(mount.status())
            if state["failed"]:
                mount.command("retry", "--all")
            return state["waiting"] == 0 and not state["failed"]
        try:
            wait_for(settled, SETTLED, "nothing waits")
        except AssertionError:
            if not state.get("failed"):
                raise
        there = self.sandbox.hashes(self.sessions[case.number])
        wanted = {name: sha256_of(data) for name, data in case.data.items()}
        lost = [n for n in ("copied.pdf", "renamed.pdf", "again.pdf") if case.said.get(n) and wanted[n] not in there]
        scratch = os.path.join(folder, ".renamed.pdf.Xy3Zu8")
        if case.said.get("scratch") and not case.said.get("renamed.pdf") and wanted["renamed.pdf"] not in there:
            if not os.path.exists(scratch) or sha256_of(scratch) != wanted["renamed.pdf"]:
                lost.append("the scratch file")
        doubled = [h for h in set(there) if there.count(h) > 1]
        partial = [h for h in there if h not in wanted.values()]
        # On a disk that takes nothing more the removal of what waits cannot be written down: it is sent by the next mount.
        zombie = not case.stays and case.said.get("rm") and wanted["removed.pdf"] in there
        if lost or doubled or partial or zombie:
            raise AssertionError("lost %s, doubled %s, in part %s, removed and there %s; after %s; said %s, %s\nnow %s" % (
                lost, doubled, partial, zombie, case.which, case.said, case.errors, state))
        return case.which[1], sum(v is True for v in case.said.values()), len(case.errors)


@unittest.skipUnless(os.path.exists(DAEMON), "not built: %s" % DAEMON)
class Torture(MountCase):
    def test_whatever_fails_in_the_daemon_what_it_said_of_a_file_holds(self):
        self.expects(r".")
        cases = [Case(i) for i in range(CASES) if not ONLY or i == int(ONLY)]
        lanes = [Lane(self, cases[i::LANES]) for i in range(min(LANES, len(cases)))]
        wrong, sums = [], [0, 0, 0, 0]

        def work(lane):
            for case in lane.cases:
                try:
                    for i, n in enumerate((1, *(min(1, x) if k == 0 else x for k, x in enumerate(lane.run(case))))):
                        sums[i] += n
                except Exception as e:
                    wrong.append("%s\n  %s: %s\n%s" % (case, type(e).__name__, e, lane.log()[-2500:]))
                    for mount in sum(lane.mounts.values(), ()):
                        mount.kill()
        threads = [threading.Thread(target=work, args=(lane,), daemon=True) for lane in lanes]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for lane in lanes:
            for mount in sum(lane.mounts.values(), ()):
                mount.kill()
        print("     cases %d, met their fault %d, calls that succeeded %d, refused %d, lost 0, doubled 0, wrong %d; points %s; seed %s" % (
            sums[0], sums[1], sums[2], sums[3], len(wrong), lanes[0].points, SEED), flush=True)
        if wrong:
            self.fail("SESSIONFS_SEED=%s: %d cases failed\n%s" % (SEED, len(wrong), "\n".join(wrong)))


if __name__ == "__main__":
    main()
