"""Listings while something happens to them: a page that does not come, a change amid a reader, a kill, a session that is away for a
moment."""

import os
import signal
import subprocess
import time

from harness import SAMPLES, SLACK, MountCase, attribute, begin, finish, main, run, wait_for


class Listings(MountCase):
    def setting(self, documents=20, pattern="bill-{n}.pdf", **options):
        self.folder = self.new_folder()
        self.sandbox = self.new_sandbox(self.folder)
        self.session = self.sandbox.session("Q1")
        self.add(documents, pattern)
        self.mount = self.new_mount(self.sandbox, self.folder, [self.session], **{"ttl": "1s", **options})
        self.mount.start().names_seen(1)
        self.path = os.path.join(self.mount.path, "Q1")

    def add(self, count, pattern):
        self.sandbox.control("POST", "/document", {"session": self.session, "count": count, "pattern": pattern, "status": "parsed"})

    def is_empty(self):
        try:
            return not os.listdir(self.path)
        except FileNotFoundError:
            return True

    def there(self):
        return sorted(d["filename"] for d in self.sandbox.documents(self.session))

    def test_right_after_a_remount_no_listing_is_empty(self):
        self.setting()
        self.assertEqual(20, len(os.listdir(self.path)))
        for _ in range(6):
            self.mount.stop()
            self.mount.start()
            # The first asks for the session's record, and the second finds that under way.
            counted = run("ls %s > /dev/null; ls %s | wc -l" % (self.mount.path, self.path))
            self.assertEqual("20", counted.out.strip())

    def test_who_waits_for_a_page_keeps_nobody_from_creating_a_file(self):
        self.setting(300)
        self.sandbox.fault(route="list", nth=10, times=0, action="stall", ms=20000)
        reader = subprocess.Popen(["ls", "-1U", self.path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_for(lambda: len(self.sandbox.requests()) > 10, 20 * SLACK, "the page is asked for")
        writer = begin("echo some > %s/x.tmp" % self.path)
        wait_for(lambda: writer.poll() is not None, 15 * SLACK, "the file is created")
        self.assertIsNone(reader.poll(), "the reader still waits")
        self.assertEqual(0, finish(writer).status)
        self.sandbox.clear_faults()
        names, errors = reader.communicate(timeout=60 * SLACK)
        self.assertEqual((0, b""), (reader.returncode, errors))
        listed = names.decode().split()
        self.assertEqual(self.there(), sorted(n for n in listed if n != "x.tmp"))

    def test_a_reader_misses_nobody_who_stays_when_others_come_and_go(self):
        self.setting(2000)
        self.assertEqual(2000, len(os.listdir(self.path)))  # the kernel remembers them from here on
        before = self.sandbox.documents(self.session)
        seen = []
        with os.scandir(self.path) as reader:
            for entry in reader:
                seen.append(entry.name)
                if len(seen) != 10:
                    continue
                for document in before[::40]:
                    self.sandbox.detach(self.session, document["id"])
                self.add(30, "late-{n}.pdf")
                self.assertEqual(0, self.mount.command("refresh", self.path).status)
                late = os.path.join(self.path, "late-000001.pdf")
                wait_for(lambda: os.path.exists(late), 20 * SLACK, "the change is known")
        stayed = {d["filename"] for d in before} - {d["filename"] for d in before[::40]}
        self.assertEqual(set(), stayed - set(seen))
        self.assertEqual(len(set(seen)), len(seen))

    def test_a_refresh_wanted_while_one_is_under_way_is_not_answered_by_that(self):
        self.setting(100, ttl="60s")
        self.assertEqual(100, len(os.listdir(self.path)))
        self.sandbox.fault(route="get_session", times=1, when="after", action="stall", ms=2000)
        mark = self.sandbox.last_request()
        self.mount.command("refresh", self.path)
        wait_for(lambda: self.sandbox.requests(mark), 10 * SLACK, "the first one is under way")
        self.sandbox.document(self.session, "fresh.pdf", text="fresh")
        self.mount.command("refresh", self.path)
        wait_for(lambda: "fresh.pdf" in os.listdir(self.path), 30 * SLACK, "the second one shows what came meanwhile")

    def test_a_session_of_the_configuration_that_was_away_comes_back(self):
        self.setting()
        self.assertEqual(20, len(os.listdir(self.path)))
        self.sandbox.fault(path="/extractions/sessions/" + self.session, times=0, action="status", status=404,
                           body={"message": "not now"})
        wait_for(self.is_empty, 20 * SLACK, "it leaves")
        wait_for(lambda: "Q1" not in os.listdir(self.mount.path), 20 * SLACK, "its folder leaves")
        self.sandbox.clear_faults()
        os.kill(self.mount.process.pid, signal.SIGHUP)
        wait_for(lambda: "Q1" in os.listdir(self.mount.path), 20 * SLACK, "its folder is back")
        wait_for(lambda: len(os.listdir(self.path)) == 20, 20 * SLACK, "and its documents")

    def test_a_configured_session_that_was_taken_off_by_hand_stays_off(self):
        self.setting()
        other = self.sandbox.session("Q2")
        self.mount.sessions.append(other)
        self.mount.write_config()
        self.mount.stop()
        self.mount.start().names_seen(2)
        os.rmdir(os.path.join(self.mount.path, "Q2"))
        self.sandbox.fault(path="/extractions/sessions/" + self.session, times=0, action="status", status=404, body={})
        wait_for(self.is_empty, 20 * SLACK, "the other one leaves")
        self.sandbox.clear_faults()
        os.kill(self.mount.process.pid, signal.SIGHUP)
        wait_for(lambda: "Q1" in os.listdir(self.mount.path), 20 * SLACK, "which comes back")
        self.assertNotIn("Q2", os.listdir(self.mount.path))

    def test_a_name_seen_in_a_walk_that_was_killed_stays_its_documents(self):
        self.setting(100, pattern="same.pdf")
        self.sandbox.fault(route="list", nth=5, times=0, action="stall", ms=30000)
        reader = subprocess.Popen(["ls", "-1U", self.path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        one = os.path.join(self.path, "same.pdf")
        wait_for(lambda: os.path.exists(one), 20 * SLACK, "a name shows")
        first = attribute(one, "id"), os.stat(one).st_ino
        time.sleep(2)  # the first page's are saved at once, the others every two seconds
        self.mount.kill()
        self.sandbox.clear_faults()
        reader.wait()
        self.sandbox.set(list__order="newest")
        self.mount.start().names_seen(1)
        self.assertEqual(100, len(os.listdir(self.path)))
        self.assertEqual(first, (attribute(one, "id"), os.stat(one).st_ino))

    def test_a_document_moved_to_another_session_keeps_its_number_through_a_kill(self):
        self.folder = self.new_folder()
        self.sandbox = self.new_sandbox(self.folder)
        sessions = [self.sandbox.session(name) for name in ("Q1", "Q2")]
        for session in sessions:
            self.sandbox.control("POST", "/document", {"session": session, "count": 5, "pattern": "bill-{n}.pdf", "status": "parsed"})
        self.sandbox.document(sessions[0], "moved.pdf", text="moved")
        mount = self.new_mount(self.sandbox, self.folder, sessions, ttl="1h", remove="yes").start().names_seen(2)
        first, second = (os.path.join(mount.path, name) for name in ("Q1", "Q2"))
        self.assertEqual((6, 5), (len(os.listdir(first)), len(os.listdir(second))))
        database = os.path.join(mount.options["cache_dir"], "listings.db")
        wait_for(lambda: os.path.getsize(database) + os.path.getsize(database + "-wal") > 20000, 10, "the listings are written")
        time.sleep(2)
        number = os.stat(os.path.join(first, "moved.pdf")).st_ino
        os.rename(os.path.join(first, "moved.pdf"), os.path.join(second, "moved.pdf"))
        self.assertEqual(number, os.stat(os.path.join(second, "moved.pdf")).st_ino)
        mount.kill()
        mount.start().names_seen(2)
        os.listdir(first)  # what is remembered of it may be older
        wait_for(lambda: "moved.pdf" in os.listdir(second), 20 * SLACK, "it shows where it is")
        self.assertEqual(number, os.stat(os.path.join(second, "moved.pdf")).st_ino)

    def test_a_state_that_turns_out_damaged_is_set_aside_at_the_next_start(self):
        self.expects("state.db")
        self.setting(300)
        self.assertEqual(300, len(os.listdir(self.path)))
        run("cp %s/invoice.pdf %s/mine.pdf" % (SAMPLES, self.path))
        self.mount.stop()
        database = os.path.join(self.mount.options["state_dir"], "state.db")
        with open(database, "r+b") as f:
            f.seek(os.path.getsize(database) // 2)
            f.write(b"\xa5" * 600)
        for _ in range(3):
            self.mount.start().names_seen(1)
            self.assertEqual(301, len(os.listdir(self.path)))
            run("cp %s/photo.jpg %s/p.jpg" % (SAMPLES, self.path))
            os.remove(os.path.join(self.path, "p.jpg"))
            self.mount.stop()
        mark = len(self.mount.log())
        self.mount.start().names_seen(1)
        self.assertEqual(301, len(os.listdir(self.path)))
        self.mount.stop()
        self.assertNotIn("malformed", self.mount.log()[mark:])
        self.assertTrue([n for n in os.listdir(self.mount.options["state_dir"]) if "damaged-" in n])


if __name__ == "__main__":
    main()
