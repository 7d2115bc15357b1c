"""What outlives the daemon: names, inode numbers, times and every file that was still on its way."""

import os
import signal
import threading
import time

from harness import (SLACK, SLOW, TOKEN, MountCase, attribute, begin, main, mounts_under, paper_bytes, processes_of, read, run, sha256_of,
                     wait_for, write)


class Restart(MountCase):
    def setting(self, **options):
        folder = self.new_folder()
        self.sandbox = self.new_sandbox(folder)
        self.session = self.sandbox.session("Q1")
        self.mount = self.new_mount(self.sandbox, folder, [self.session], **{"ttl": "10m", **options})
        self.mount.start().names_seen(1)
        self.dir = os.path.join(self.mount.path, "Q1")
        os.listdir(self.dir)
        self.sources = self.new_folder()

    def paper(self, name="paper.pdf", size=None):
        return write(os.path.join(self.sources, name), paper_bytes(size=size))

    def snapshot(self):
        return {e.name: (e.stat().st_ino, e.stat().st_mtime_ns, e.stat().st_size, attribute(e.path, "id"))
                for e in os.scandir(self.dir)}

    def arrives_once(self, *papers):
        wanted = sorted(map(sha256_of, papers))
        wait_for(lambda: len(self.sandbox.hashes(self.session)) >= len(wanted), 60, "%d documents at the service" % len(wanted))
        time.sleep(0.7)
        self.assertEqual(wanted, self.sandbox.hashes(self.session))
        self.assertEqual(sorted(map(os.path.basename, papers)), sorted(os.listdir(self.dir)))

    def test_names_inodes_times_and_ids_are_the_same_after_an_unmount_and_after_a_kill(self):
        self.setting()
        for i in range(3):
            self.sandbox.document(self.session, "invoice.pdf", text="invoice %d" % i)
        self.assertEqual(0, self.mount.command("refresh", self.dir).status)
        for i in range(3):
            paper = self.paper("mine %d.pdf" % i)
            os.utime(paper, (1_500_000_000 + i, 1_500_000_000 + i))
            self.assertEqual(0, run(["cp", "-p", paper, self.dir]).status)
        wait_for(lambda: len(os.listdir(self.dir)) == 6, 10, "six")
        before = self.snapshot()
        root = {e.name: e.inode() for e in os.scandir(self.mount.path)}
        for ending in (self.mount.stop, self.mount.kill):
            ending()
            self.mount.start().names_seen(1)
            wait_for(lambda: len(os.listdir(self.dir)) == 6, 10, "six")
            self.assertEqual(before, self.snapshot())
            self.assertEqual(root, {e.name: e.inode() for e in os.scandir(self.mount.path)})

    def test_the_known_sessions_show_before_the_service_has_answered(self):
        self.setting()
        self.mount.stop()
        self.sandbox.fault(origin="api", action="stall", times=0)
        self.mount.start()
        began = time.monotonic()
        self.assertEqual(["Q1"], os.listdir(self.mount.path))
        self.assertNotEqual(None, attribute(self.dir, "id"))
        self.assertLess(time.monotonic() - began, 1)
        self.sandbox.clear_faults()

    def killed_at(self, **fault):
        """kill -9 of the daemon while the service holds one step of an upload."""
        self.setting(upload="background")
        self.sandbox.fault(action="stall", times=0, **fault)
        paper = self.paper()
        self.assertEqual(0, run(["cp", paper, self.dir]).status)
        held = lambda: [r for r in self.sandbox.writes() if not r["done"]]
        wait_for(held, 10, "the step is under way")
        self.mount.kill()
        self.sandbox.clear_faults()
        time.sleep(0.3)
        self.mount.start().names_seen(1)
        wait_for(lambda: "paper.pdf" in os.listdir(self.dir), 10, "it is listed again")
        self.arrives_once(paper)
        self.assertEqual(read(paper), read(os.path.join(self.dir, "paper.pdf")))
        wait_for(lambda: attribute(os.path.join(self.dir, "paper.pdf"), "state") == "stored", 10, "stored")

    def test_killed_while_it_signs_the_file_arrives_once(self):
        self.killed_at(route="sign")

    def test_killed_while_it_sends_the_file_arrives_once(self):
        self.killed_at(origin="storage", method="PUT")

    def test_killed_before_the_last_step_is_done_the_file_arrives_once(self):
        self.killed_at(route="upload")

    def test_killed_after_the_last_step_was_done_the_file_is_there_once(self):
        self.killed_at(route="upload", when="after")

    def test_killed_with_a_hundred_uploads_queued_all_arrive_once(self):
        self.setting(upload="background")
        self.sandbox.set(latency_ms=20)
        papers = [self.paper("drop %03d.pdf" % i, size=40_000) for i in range(100)]
        self.assertEqual(0, run(["cp", *papers, self.dir]).status)
        wait_for(lambda: len(self.sandbox.hashes(self.session)) >= 5, 20, "some have arrived")
        self.mount.kill()
        there = len(self.sandbox.hashes(self.session))
        print("     killed with %d of 100 at the service" % there)
        self.mount.start().names_seen(1)
        self.arrives_once(*papers)

    def test_a_file_a_program_was_still_writing_when_the_daemon_died_is_not_uploaded_half(self):
        self.setting()
        self.expects(r".")
        writer = begin("exec 3> '%s'; head -c 50000 /dev/zero >&3; sleep 100" % os.path.join(self.dir, "half.pdf"))
        self.kept.append(writer)
        wait_for(lambda: "half.pdf" in os.listdir(self.dir) and os.stat(os.path.join(self.dir, "half.pdf")).st_size == 50000, 10, "half")
        self.mount.kill()
        os.killpg(writer.pid, signal.SIGKILL)
        writer.communicate()
        self.mount.start().names_seen(1)
        time.sleep(1)
        self.assertEqual([], self.sandbox.documents(self.session))

    def test_a_scratch_file_survives_a_remount_and_can_still_become_a_document(self):
        self.setting()
        data = paper_bytes()
        scratch = write(os.path.join(self.dir, "later.part"), data)
        self.mount.stop()
        self.mount.start().names_seen(1)
        self.assertEqual(["later.part"], os.listdir(self.dir))
        self.assertEqual(data, read(scratch))
        os.rename(scratch, os.path.join(self.dir, "later.pdf"))
        self.assertEqual([sha256_of(data)], self.sandbox.hashes(self.session))
        self.assertEqual(["later.pdf"], os.listdir(self.dir))

    def test_a_token_that_was_refused_for_a_while_holds_the_files_and_fails_none(self):
        self.setting(upload="background", close_timeout="5s")
        self.expects(r".")
        self.sandbox.control("POST", "/revoke", {"token": TOKEN})
        papers = [self.paper("drop %d.pdf" % i) for i in range(5)]
        run(["cp", *papers, self.dir])
        time.sleep(1)
        self.assertEqual([], self.sandbox.documents(self.session))
        self.assertFalse(os.path.exists(os.path.join(self.mount.path, "Not uploaded")))
        self.sandbox.control("POST", "/token", {"token": TOKEN, "abilities": "*"})
        self.assertEqual(0, self.mount.command("retry", "--all").status)
        self.arrives_once(*papers)

    def test_a_token_refused_in_the_middle_of_many_files_fails_none_and_all_are_there_once_it_is_replaced(self):
        self.setting(upload="background", close_timeout="5s")
        self.expects(r".")
        count = 300 if SLOW else 45
        names = ["Q1", "Q2", "Q3"]
        ids = [self.session] + [self.sandbox.session(name) for name in names[1:]]
        for session in ids[1:]:
            self.assertEqual(0, self.mount.command("add", "test", session).status)
        folders = [os.path.join(self.mount.path, name) for name in names]
        for folder in folders:
            wait_for(lambda folder=folder: os.path.isdir(folder), 10, "it shows")
            os.listdir(folder)
        papers = [self.paper("drop %03d.pdf" % i, size=20_000) for i in range(count)]
        self.sandbox.set(latency_ms=20)
        there = lambda: sum(len(self.sandbox.hashes(session)) for session in ids)
        refused = threading.Event()

        def refuse():
            wait_for(lambda: there() >= count // 10, 60, "some have arrived")
            self.sandbox.control("POST", "/revoke", {"token": TOKEN})
            refused.set()
        thread = threading.Thread(target=refuse)
        thread.start()
        for i, paper in enumerate(papers):
            if i == count // 2:
                self.assertTrue(refused.wait(60 * SLACK))
            self.assertEqual(0, run(["cp", paper, folders[i % 3]]).status)
        thread.join()
        time.sleep(1.5)
        before = there()
        self.assertLess(before, count)
        state = self.mount.status()
        self.assertEqual((count - before, 0), (state["waiting"], state["failed"]))
        self.assertFalse(os.path.exists(os.path.join(self.mount.path, "Not uploaded")))
        print("     refused with %d of %d at the service" % (before, count))
        # A new token may be another account's; this one is the same person's, and lists the same sessions.
        self.sandbox.control("POST", "/token", {"token": "rd_live_a_new_token_0123456789abcdef", "abilities": "*"})
        self.mount.write_token("rd_live_a_new_token_0123456789abcdef")
        wait_for(lambda: there() >= count, 60, "all are there, and nobody said retry")
        time.sleep(0.7)
        for i, session in enumerate(ids):
            self.assertEqual(sorted(map(sha256_of, papers[i::3])), self.sandbox.hashes(session))
            self.assertEqual(sorted(map(os.path.basename, papers[i::3])), sorted(os.listdir(folders[i])))
        wait_for(lambda: self.mount.status()["waiting"] == 0, 10, "nothing waits")

    def test_a_dead_mount_can_be_mounted_over_again(self):
        self.setting()
        self.mount.process.kill()
        self.mount.process.wait()
        self.assertIn(self.mount.path, mounts_under(self.mount.path))
        done = self.mount.command("test", self.mount.path, seconds=40)
        self.assertEqual(0, done.status, done)
        wait_for(lambda: "Q1" in os.listdir(self.mount.path), 10, "it shows")
        self.mount.process = None
        pids = processes_of(self.mount.path)
        while mounts_under(self.mount.path):
            run(["fusermount3", "-u", "-z", self.mount.path])
        wait_for(lambda: not any(os.path.exists("/proc/%d" % p) for p in pids), 20, "the daemon has ended")


if __name__ == "__main__":
    main()
