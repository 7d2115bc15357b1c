"""Starting and ending: one sentence for each failure, a mount in the background only after the service has answered, and the same
options in the file, with -o and from fstab."""

import os
import shutil
import signal
import sqlite3
import stat
import time

from harness import (SESSIONFS, SLACK, TOKEN, MountCase, attribute, begin, environment, finish, main, mounts_under, needs, paper_bytes,
                     processes_of, read, run, sha256_of, wait_for, write)

LOOPBACK_CLOSED = "http://127.0.0.1:9"  # discard: nobody listens


class Start(MountCase):
    def setting(self, *arguments, **options):
        self.folder = self.new_folder()
        self.sandbox = self.new_sandbox(self.folder, *arguments)
        self.session = self.sandbox.session("Q1")
        self.mount = self.new_mount(self.sandbox, self.folder, [self.session], **options)

    def in_background(self, *words, seconds=30):
        """`sessionfs test MOUNTPOINT` as a user types it: it returns once the mount is there."""
        done = self.mount.command("test", self.mount.path, *words, seconds=seconds)
        return done

    def end_background(self):
        pids = processes_of(self.mount.path)
        done = run(["fusermount3", "-u", self.mount.path], 20)
        self.assertEqual(0, done.status, done)
        wait_for(lambda: not any(os.path.exists("/proc/%d" % p) for p in pids), 20, "the daemon has ended")

    def fails_with(self, *patterns, words=(), seconds=30):
        done = self.in_background(*words, seconds=seconds)
        self.assertNotEqual(0, done.status, done)
        self.assertEqual([], mounts_under(self.mount.path))
        sentences = [line for line in done.err.strip().split("\n") if line]
        self.assertEqual(1, len(sentences), "not one sentence: %s" % done.err)
        for pattern in patterns:
            self.assertRegex(done.err, pattern)
        self.assertNotIn(TOKEN, done.out + done.err)
        wait_for(lambda: not processes_of(self.mount.path), 10, "nothing runs")
        return done


class Failures(Start):
    def test_a_bad_token_is_one_sentence_that_says_where_to_make_one(self):
        self.setting()
        self.mount.write_token("rd_live_wrong")
        self.fails_with(r"401|token", r"API Keys")

    def test_a_service_that_cannot_be_reached_is_one_sentence(self):
        self.setting(url=LOOPBACK_CLOSED)
        done = self.fails_with(r"127\.0\.0\.1:9", seconds=40)
        self.assertLess(done.seconds, 15 * SLACK)

    def test_start_strict_fails_even_when_something_is_remembered(self):
        self.setting()
        self.assertEqual(0, self.in_background().status)
        self.end_background()
        self.sandbox.control("POST", "/down", {"how": "refuse"})
        self.fails_with("127", words=("-o", "start=strict"), seconds=40)

    def test_no_token_is_one_sentence_that_names_setup(self):
        self.setting()
        os.unlink(self.mount.token_file)
        self.mount.options["token_file"] = None
        self.mount.write_config()
        self.fails_with(r"setup")

    def test_a_token_file_that_others_can_read_is_refused(self):
        self.setting()
        os.chmod(self.mount.token_file, 0o644)
        self.fails_with(r"token", r"read|0600|chmod|mode")

    def test_an_unknown_option_is_named(self):
        self.setting()
        self.fails_with(r"colour", words=("-o", "colour=blue"))

    def test_a_bad_value_is_named(self):
        self.setting()
        self.fails_with(r"ttl", words=("-o", "ttl=soon"))

    def test_plain_http_to_another_host_is_refused(self):
        self.setting(url="http://192.0.2.1")
        self.fails_with(r"https?")

    def test_a_mount_point_that_is_not_there_is_named(self):
        self.setting()
        shutil.rmtree(self.mount.path)
        self.fails_with(r"mnt")

    def test_an_unknown_source_is_named(self):
        self.setting()
        done = self.mount.command("nowhere", self.mount.path)
        self.assertNotEqual(0, done.status)
        self.assertIn("nowhere", done.err)

    def test_a_second_mount_of_one_state_folder_is_refused_by_pid(self):
        self.setting()
        self.mount.start().names_seen(1)
        other = os.path.join(self.folder, "other")
        os.mkdir(other)
        done = self.mount.command("test", other, seconds=60)
        self.assertNotEqual(0, done.status)
        self.assertIn(str(self.mount.process.pid), done.err)
        self.assertEqual([], mounts_under(other))

    def test_no_arguments_and_help_and_version(self):
        done = run([SESSIONFS])
        self.assertNotEqual(0, done.status)
        self.assertIn("-h", done.err + done.out)
        done = run([SESSIONFS, "-h"])
        self.assertEqual(0, done.status)
        for word in ("setup", "close_timeout", "token_file", "remove", "template"):
            self.assertIn(word, done.out)
        done = run([SESSIONFS, "-V"])
        self.assertEqual(0, done.status)
        self.assertRegex(done.out, r"sessionfs.*\d+\.\d+")


class Background(Start):
    def test_the_command_returns_0_once_the_mount_is_there_and_SIGTERM_ends_it(self):
        self.setting()
        done = self.in_background()
        self.assertEqual(0, done.status, done)
        self.assertIn(self.mount.path, mounts_under(self.mount.path))
        wait_for(lambda: "Q1" in os.listdir(self.mount.path), 10, "the session shows")
        pids = processes_of(self.mount.path)
        self.assertEqual(1, len(pids))
        self.assertEqual("/", os.readlink("/proc/%d/cwd" % pids[0]))
        os.kill(pids[0], signal.SIGTERM)
        wait_for(lambda: not os.path.exists("/proc/%d" % pids[0]), 20, "it has ended")
        self.assertEqual([], mounts_under(self.mount.path))

    def test_fusermount3_u_ends_it(self):
        self.setting()
        self.assertEqual(0, self.in_background().status)
        self.end_background()
        self.assertEqual([], mounts_under(self.mount.path))

    def test_start_auto_shows_what_is_remembered_when_the_service_is_away(self):
        self.setting()
        self.sandbox.document(self.session, "a.pdf", text="text")
        self.assertEqual(0, self.in_background().status)
        inside = os.path.join(self.mount.path, "Q1")
        wait_for(lambda: os.path.isdir(inside) and os.listdir(inside) == ["a.pdf"], 10, "listed")
        self.end_background()
        self.sandbox.control("POST", "/down", {"how": "refuse"})
        done = self.in_background(seconds=40)
        self.assertEqual(0, done.status, done)
        self.assertIn("Q1", os.listdir(self.mount.path))
        self.sandbox.control("POST", "/up")
        self.end_background()

    def test_a_second_mount_shows_its_documents_before_the_service_has_said_a_word(self):
        self.setting()
        self.sandbox.document(self.session, "a.pdf", text="a")
        self.mount.start().names_seen(1)
        inside = os.path.join(self.mount.path, "Q1")
        wait_for(lambda: os.listdir(inside) == ["a.pdf"], 10, "listed")
        size, ino = os.stat(inside + "/a.pdf").st_size, os.stat(inside + "/a.pdf").st_ino
        self.assertEqual(0, self.mount.stop())
        self.sandbox.fault(origin="api", action="stall", times=0)
        since = self.sandbox.last_request()
        self.mount.start()
        self.assertIn("Q1", os.listdir(self.mount.path))
        self.assertEqual(["a.pdf"], os.listdir(inside))
        info = os.stat(inside + "/a.pdf")
        self.assertEqual((size, ino), (info.st_size, info.st_ino))
        self.assertEqual("1", os.getxattr(inside, "user.sessionfs.documents").decode())
        self.assertFalse(os.path.exists(inside + "/b.pdf"))
        self.assertEqual([], [r for r in self.sandbox.requests(since) if r.get("status")], "something was answered")
        self.sandbox.clear_faults()
        self.sandbox.document(self.session, "b.pdf", text="b")
        self.assertEqual(0, self.mount.command("refresh", inside).status)
        wait_for(lambda: sorted(os.listdir(inside)) == ["a.pdf", "b.pdf"], 20, "what is new shows")

    def test_start_wait_goes_on_trying_until_the_service_is_there(self):
        self.setting()
        self.sandbox.control("POST", "/down", {"how": "refuse"})
        process = begin([SESSIONFS, "test", self.mount.path, "-o", "start=wait"], env=self.mount.environment())
        wait_for(lambda: self.mount.path in mounts_under(self.mount.path), 10, "mounted")
        time.sleep(11)  # longer than the other ways to start wait
        self.assertIsNone(process.poll())
        self.sandbox.control("POST", "/up")
        done = finish(process)
        self.assertEqual(0, done.status, done)
        wait_for(lambda: "Q1" in os.listdir(self.mount.path), 10, "the session shows")
        self.end_background()

    def test_403_to_the_start_check_proves_the_token(self):
        self.setting()
        self.sandbox.control("POST", "/token", {"token": TOKEN, "abilities": ["sessions-read", "sessions-write"]})
        done = self.in_background()
        self.assertEqual(0, done.status, done)
        self.end_background()

    def test_unmounting_before_the_service_has_answered_is_a_clean_end(self):
        self.setting()
        self.sandbox.set(latency_ms=400)
        self.mount.start()
        self.assertEqual(0, self.mount.stop())

    def test_unmounting_before_the_service_has_answered_is_no_start_for_who_waits_for_one(self):
        self.setting()
        self.sandbox.set(latency_ms=3000)
        process = begin([SESSIONFS, "test", self.mount.path], env=self.mount.environment())
        wait_for(lambda: self.mount.path in mounts_under(self.mount.path), 10, "mounted")
        self.assertEqual(0, self.mount.unmount().status)
        done = finish(process)
        self.assertEqual(4, done.status, done)
        self.assertIn("unmounted", done.err)
        wait_for(lambda: not processes_of(self.mount.path), 20, "the daemon has ended")

    def test_an_interrupt_ends_a_mount_in_the_foreground(self):
        self.setting()
        self.mount.start().names_seen(1)
        self.mount.process.send_signal(signal.SIGINT)
        self.assertEqual(0, self.mount.process.wait(20 * SLACK))
        self.assertEqual([], mounts_under(self.mount.path))


class Asked(Start):
    """Each request that a start takes, by name: the service allows few, and what is wanted anyway proves the token too."""

    def setting(self, documents=20, sessions=1, **options):
        super().setting(**options)
        self.sessions = [self.session] + [self.sandbox.session("Q%d" % (i + 2)) for i in range(sessions - 1)]
        for one in self.sessions:
            self.sandbox.control("POST", "/document", {"session": one, "count": documents, "pattern": "bill-{n}.pdf", "status": "parsed"})
        self.mount.sessions = list(self.sessions)
        self.mount.write_config()
        self.since = self.sandbox.last_request()

    def asked(self):
        """Since it was last called."""
        time.sleep(0.7 * SLACK)  # what comes late counts as well
        asked = self.sandbox.requests(self.since)
        self.since = self.sandbox.last_request()
        return ["%s %s%s" % (r["method"], r["path"], "?" + r["query"] if r["query"] else "") for r in asked]

    def record(self, session=None):
        return "GET /extractions/sessions/" + (session or self.session)

    def page(self, number=1):
        return self.record() + "/documents?page=%d" % number

    def template(self):
        return "GET /extractions/templates/" + self.sandbox.template

    def remount(self, *words, seconds=40):
        self.end_background()
        self.asked()
        return self.in_background(*words, seconds=seconds)

    def mounted_and_listed(self, **options):
        """Once, so that it is remembered."""
        self.setting(**options)
        self.assertEqual(0, self.in_background().status)
        inside = os.path.join(self.mount.path, "Q1")
        wait_for(lambda: os.path.isdir(inside), 10, "the session shows")
        self.names = sorted(os.listdir(inside))
        return inside

    def test_a_new_session_costs_its_own_record_and_its_templates(self):
        self.setting(sessions=3)
        self.assertEqual(0, self.in_background().status)
        wait_for(lambda: len(os.listdir(self.mount.path)) == 3, 10, "all show")
        asked = self.asked()
        self.assertEqual([self.record(), self.template()], asked[:2])
        self.assertEqual(sorted([self.record(s) for s in self.sessions] + [self.template()]), sorted(asked))
        self.end_background()

    def test_a_remount_costs_one_record_and_a_listing_that_it_shows_unchanged_costs_none(self):
        inside = self.mounted_and_listed(sessions=3)
        self.assertEqual(0, self.remount().status)
        self.assertEqual([self.record()], self.asked())
        self.assertEqual(0, run(["ls", "-l", inside]).status)
        self.assertEqual([], self.asked())
        self.assertEqual(self.names, sorted(os.listdir(inside)))
        self.assertEqual(str(self.sandbox.workspace), attribute(inside, "workspace"))
        self.assertIn("in order", read(os.path.join(self.mount.path, ".sessionfs", "status")).decode())
        self.end_background()

    def test_a_listing_after_a_remount_costs_one_request_once_the_record_is_old(self):
        inside = self.mounted_and_listed(ttl="1s")
        self.assertEqual(0, self.remount().status)
        self.assertEqual([self.record()], self.asked())
        time.sleep(1)
        self.assertEqual(0, run(["ls", "-l", inside]).status)
        self.assertEqual([self.record()], self.asked())
        self.end_background()

    def test_who_looks_while_the_record_is_on_its_way_asks_for_nothing_more(self):
        inside = self.mounted_and_listed()
        self.end_background()
        self.sandbox.set(latency_ms=1500)
        self.asked()
        self.mount.start()
        self.assertEqual(self.names, sorted(os.listdir(inside)))
        self.assertEqual([self.record()], self.asked())
        wait_for(lambda: "in order" in read(os.path.join(self.mount.path, ".sessionfs", "status")).decode(), 20, "it was answered")
        self.assertEqual([], self.asked())
        self.sandbox.set(latency_ms=0)

    def test_what_fits_into_one_page_is_listed_by_that(self):
        inside = self.mounted_and_listed(documents=5, ttl="1s")
        self.assertEqual(0, self.remount().status)
        self.assertEqual([self.record()], self.asked())
        time.sleep(1)
        self.assertEqual(0, run(["ls", "-l", inside]).status)
        self.assertEqual([self.page()], self.asked())
        self.end_background()

    def test_a_change_meanwhile_is_seen_at_the_remount(self):
        inside = self.mounted_and_listed()
        self.end_background()
        document = self.sandbox.documents(self.session)[0]
        self.sandbox.detach(self.session, document["id"])
        self.sandbox.document(self.session, "new.pdf", text="new")
        self.sandbox.control("POST", "/rename", {"session": self.session, "name": "Renamed"})
        self.asked()
        self.assertEqual(0, self.in_background().status)
        self.assertEqual([self.record()], self.asked())
        inside = os.path.join(self.mount.path, "Renamed")
        self.assertEqual(["Renamed"], os.listdir(self.mount.path))
        names = sorted(set(self.names) - {document["filename"]} | {"new.pdf"})
        wait_for(lambda: sorted(os.listdir(inside)) == names, 20, "what changed shows")
        self.end_background()

    def test_a_token_that_is_refused_at_a_remount_is_refused_by_the_first_answer(self):
        self.mounted_and_listed()
        self.end_background()
        self.sandbox.control("POST", "/revoke", {"token": TOKEN})
        self.asked()
        done = self.fails_with(r"token", r"API Keys")
        self.assertEqual(3, done.status)
        since = self.since
        self.assertEqual([self.record()], self.asked())
        self.assertEqual([401], [r["status"] for r in self.sandbox.requests(since)])
        # Another token has nothing to remember, and is refused as one that never was here.
        self.mount.write_token("rd_live_wrong")
        self.fails_with(r"token", r"API Keys")
        self.assertEqual([self.record()], self.asked())

    def test_a_service_that_is_away_at_a_remount_is_asked_once_it_is_back(self):
        inside = self.mounted_and_listed()
        self.end_background()
        self.sandbox.control("POST", "/down", {"how": "refuse"})
        self.asked()
        done = self.in_background(seconds=40)
        self.assertEqual(0, done.status, done)
        self.assertIn("remembered from", done.err)
        self.assertEqual(self.names, sorted(os.listdir(inside)))
        self.sandbox.control("POST", "/up")
        since = self.since
        wait_for(lambda: "in order" in read(os.path.join(self.mount.path, ".sessionfs", "status")).decode(), 40, "it was asked again")
        self.assertEqual([self.record()], self.asked())
        self.assertEqual([200], [r["status"] for r in self.sandbox.requests(since)])
        self.assertEqual(self.names, sorted(os.listdir(inside)))
        self.end_background()

    def test_a_403_or_404_to_the_record_proves_the_token(self):
        for status, times in ((404, 1), (403, 2)):  # of these two, the first alone is remembered
            with self.subTest(status=status):
                self.setting()
                self.sandbox.fault(route="get_session", status=status, times=0, body={"message": "No."})
                self.assertEqual(0, self.in_background().status)
                self.assertEqual([self.record()] * times, self.asked())
                self.end_background()

    def test_one_record_that_is_broken_or_slow_keeps_no_mount_from_starting(self):
        for fault in ({"status": 500}, {"action": "stall"}):
            with self.subTest(fault=fault):
                self.setting()
                self.sandbox.fault(route="get_session", times=0, **fault)
                self.assertEqual(0, self.in_background().status)
                asked = self.asked()
                self.assertEqual(1, asked.count("GET /workspaces"), asked)
                self.assertEqual({self.record(), "GET /workspaces"}, set(asked))
                self.end_background()

    def test_a_session_that_is_gone_at_a_remount_leaves_by_the_same_answer(self):
        self.mounted_and_listed()
        self.end_background()
        self.sandbox.control("POST", "/delete-session", {"session": self.session})
        self.asked()
        self.assertEqual(0, self.in_background().status)
        wait_for(lambda: "Q1" not in os.listdir(self.mount.path), 10, "it leaves")
        self.assertEqual([self.record()], self.asked())
        self.end_background()

    def test_with_nothing_to_ask_for_the_workspaces_are(self):
        self.setting()
        self.mount.sessions = []
        self.mount.options["discover"] = "no"
        self.mount.write_config()
        self.assertEqual(0, self.in_background().status)
        self.assertEqual(["GET /workspaces"], self.asked())
        self.end_background()

    def test_what_stands_by_itself_is_asked_again_when_it_was_forgotten_on_request(self):
        self.mounted_and_listed(ttl="1s")
        self.assertEqual(0, self.remount().status)
        self.assertEqual([self.record()], self.asked())
        self.assertEqual(0, self.mount.command("refresh", self.mount.path).status)
        time.sleep(0.5)
        os.listdir(self.mount.path)
        self.assertEqual([self.record(), self.template()], self.asked())
        self.end_background()


class Scratch(Start):
    def test_a_scratch_file_goes_a_week_after_its_last_write_also_while_the_mount_lives(self):
        self.setting()
        self.mount.start().names_seen(1)
        inside = os.path.join(self.mount.path, "Q1")
        for name in ("old.tmp", "young.tmp"):
            write(os.path.join(inside, name), b"half a file")
        os.sync()
        wait_for(lambda: len(os.listdir(inside)) == 2, 10, "both are there")
        self.assertEqual(0, self.mount.stop())
        db = sqlite3.connect(os.path.join(self.mount.options["state_dir"], "state.db"))
        row = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%queued_wall_ms%'").fetchone()
        old = (time.time() - 7 * 24 * 3600 + 3 * SLACK) * 1000  # what the program sees of it: a week, but for a few seconds
        self.assertEqual(1, db.execute("UPDATE %s SET queued_wall_ms = ? WHERE name = 'old.tmp'" % row[0], (int(old),)).rowcount)
        db.commit()
        db.close()
        self.mount.start().names_seen(1)
        self.assertEqual(["old.tmp", "young.tmp"], sorted(os.listdir(inside)))
        wait_for(lambda: os.listdir(inside) == ["young.tmp"], 20, "the old one has gone")
        self.assertFalse(os.path.exists(os.path.join(inside, "old.tmp")))
        self.assertEqual(0, self.mount.stop())
        self.mount.start().names_seen(1)
        self.assertEqual(["young.tmp"], os.listdir(inside))


class WaysToSayIt(Start):
    def test_all_options_with_o_and_no_configuration(self):
        self.setting()
        options = ",".join("%s=%s" % (k, v) for k, v in self.mount.options.items() if k != "service")
        env = environment({"XDG_CONFIG_HOME": os.path.join(self.folder, "none")}, home=self.folder)
        done = run([SESSIONFS, "raydocs", self.mount.path, "-o", options + ",session=" + self.session], env=env)
        self.assertEqual(0, done.status, done)
        wait_for(lambda: "Q1" in os.listdir(self.mount.path), 10, "the session shows")
        self.end_background()

    def test_the_options_of_an_fstab_line_as_mount_8_passes_them(self):
        self.setting(allow_other="yes")
        done = self.in_background("-o", "rw,_netdev,nofail,noauto,x-systemd.automount,nosuid,nodev,noatime")
        self.assertEqual(0, done.status, done)
        with open("/proc/self/mountinfo") as f:
            line = [x for x in f if self.mount.path in x.split()][0]
        self.assertIn("fuse.sessionfs", line)
        self.assertIn("nosuid", line)
        self.assertIn("allow_other", line)
        self.end_background()

    @needs("/sbin/mount.fuse3")
    def test_mount_8_mounts_it_by_its_type(self):
        self.setting()
        options = ",".join("%s=%s" % (k, v) for k, v in self.mount.options.items() if k != "service")
        # As `mount -t fuse.sessionfs raydocs` does once it is installed: the helper looks in the system's PATH alone.
        done = run(["mount", "-t", "fuse", SESSIONFS + "#raydocs", self.mount.path, "-o",
                    "_netdev,nosuid,nodev,%s,session=%s" % (options, self.session)])
        self.assertEqual(0, done.status, done)
        wait_for(lambda: "Q1" in os.listdir(self.mount.path), 10, "the session shows")
        done = run(["umount", self.mount.path])
        self.assertEqual(0, done.status, done)
        wait_for(lambda: not processes_of(self.mount.path), 20, "the daemon has ended")

    def test_the_token_from_the_environment_and_from_a_command(self):
        self.setting()
        os.unlink(self.mount.token_file)
        self.mount.options["token_file"] = None
        self.mount.write_config()
        env = dict(self.mount.environment(), SESSIONFS_TOKEN=TOKEN)
        done = run([SESSIONFS, "test", self.mount.path], env=env)
        self.assertEqual(0, done.status, done)
        self.end_background()
        self.mount.options["token_command"] = "printf '%s\\n' " + TOKEN
        self.mount.write_config()
        done = self.in_background()
        self.assertEqual(0, done.status, done)
        self.end_background()

    def test_token_command_is_for_the_configuration_file_alone(self):
        self.setting()
        self.fails_with("token_command", words=("-o", "token_command=echo x"))

    def test_tls_is_spoken_with_whom_cafile_vouches_for_and_with_nobody_else(self):
        self.setting("--tls")
        self.assertTrue(self.sandbox.url.startswith("https://"))
        self.fails_with(r"[Cc]ertificate|SSL|TLS", seconds=40)
        self.mount.options["cafile"] = self.sandbox.ca_file
        self.mount.write_config()
        self.assertEqual(0, self.in_background().status)
        source = write(os.path.join(self.folder, "bill.pdf"), paper_bytes())
        wait_for(lambda: "Q1" in os.listdir(self.mount.path), 10, "the session shows")
        done = run(["cp", source, os.path.join(self.mount.path, "Q1")])
        self.assertEqual(0, done.status, done)
        self.assertEqual([sha256_of(source)], self.sandbox.hashes(self.session))
        self.end_background()

    def test_check_says_how_it_is_by_its_exit_status(self):
        self.setting()
        done = self.mount.command("check", "test")
        self.assertEqual(0, done.status, done)
        self.assertNotIn(TOKEN, done.out + done.err)
        self.mount.write_token("rd_live_wrong")
        self.assertNotEqual(0, self.mount.command("check", "test").status)

    def test_discovery_finds_sessions_when_none_is_named(self):
        self.setting()
        self.sandbox.set(**{"sessions__list": "on"})
        self.mount.sessions = []
        self.mount.write_config()
        self.assertEqual(0, self.in_background().status)
        wait_for(lambda: "Q1" in os.listdir(self.mount.path), 15, "the session is found")
        self.end_background()

    def test_a_mount_without_sessions_says_what_to_type(self):
        self.setting(discover="no")
        self.mount.sessions = []
        self.mount.write_config()
        self.mount.start()
        names = wait_for(lambda: os.listdir(self.mount.path), 10, "a file with words")
        self.assertEqual(1, len(names))
        self.assertIn("sessionfs add", read(os.path.join(self.mount.path, names[0])).decode())


class FirstSteps(Start):
    def test_from_a_token_to_the_first_document_in_three_commands(self):
        self.folder = self.new_folder()
        self.sandbox = self.new_sandbox(self.folder)
        session = self.sandbox.session("Q1")
        mountpoint = os.path.join(self.folder, "mnt")
        os.mkdir(mountpoint)
        env = environment({"XDG_CONFIG_HOME": os.path.join(self.folder, "config"),
                           "XDG_STATE_HOME": os.path.join(self.folder, "state"),
                           "XDG_CACHE_HOME": os.path.join(self.folder, "cache")}, home=self.folder)
        base = "url=%s,state_dir=%s,cache_dir=%s" % (self.sandbox.url, self.folder + "/s", self.folder + "/c")
        setup = run([SESSIONFS, "setup", "raydocs", "-o", base], env=env,
                    data=("%s\nhttps://dashboard.example/sessions/%s\n\n" % (TOKEN, session)).encode())
        self.assertEqual(0, setup.status, setup)
        self.assertNotIn(TOKEN, setup.out + setup.err)
        self.assertIn("Accounts payable", setup.out + setup.err)
        stored = [os.path.join(d, f) for d, _, files in os.walk(self.folder + "/config") for f in files
                  if TOKEN.encode() in read(os.path.join(d, f))]
        self.assertEqual([0o600], [stat.S_IMODE(os.stat(f).st_mode) for f in stored], stored)
        mount = run([SESSIONFS, "raydocs", mountpoint, "-o", base], env=env)
        self.assertEqual(0, mount.status, mount)
        source = write(os.path.join(self.folder, "bill.pdf"), paper_bytes())
        wait_for(lambda: "Q1" in os.listdir(mountpoint), 10, "the session shows")
        cp = run(["cp", source, os.path.join(mountpoint, "Q1")], env=env)
        self.assertEqual(0, cp.status, cp)
        self.assertEqual([sha256_of(source)], self.sandbox.hashes(session))
        pids = processes_of(mountpoint)
        run(["fusermount3", "-u", mountpoint])
        wait_for(lambda: not any(os.path.exists("/proc/%d" % p) for p in pids), 20, "the daemon has ended")


# Every step as an account without rights; the device file is made usable in a mount namespace of its own where udev did not.
ORDINARY = r"""
set -eu
cd /
ls -ld "$MNT" > /dev/null
"$SESSIONFS" test "$MNT"
for i in 1 2 3 4 5 6 7 8 9 10; do [ -d "$MNT/Q1" ] && break; sleep 0.3; done
cp "$SOURCE" "$MNT/Q1/bill.pdf"
ls -l "$MNT/Q1"
getfattr -n user.sessionfs.state --only-values "$MNT/Q1/bill.pdf"; echo
cmp "$SOURCE" "$MNT/Q1/bill.pdf"
stat -c 'owner %u' "$MNT/Q1/bill.pdf"
fusermount3 -u "$MNT"
echo all well
"""
OUTSIDE = r"""
set -eu
mount --make-rprivate / 2>/dev/null || mount --make-rprivate /dev
if [ "$(stat -c %a /dev/fuse)" != 666 ]; then
	mknod "$FOLDER/fuse" c 10 229
	chmod 666 "$FOLDER/fuse"
	mount --bind "$FOLDER/fuse" /dev/fuse
fi
exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c "$ORDINARY"
"""


class AnOrdinaryUser(Start):
    @needs("unshare", "setpriv", "getfattr")
    def test_an_account_without_rights_mounts_copies_reads_and_unmounts(self):
        self.setting()
        if not os.stat(shutil.which("fusermount3")).st_mode & stat.S_ISUID:
            self.skipTest("fusermount3 is not setuid")
        binary = shutil.copy(SESSIONFS, os.path.join(self.folder, "sessionfs"))
        source = write(os.path.join(self.folder, "bill.pdf"), paper_bytes())
        for d, _, files in os.walk(self.folder):
            os.chown(d, 65534, 65534)
            for f in files:
                os.chown(os.path.join(d, f), 65534, 65534)
        env = dict(self.mount.environment(), SESSIONFS=binary, MNT=self.mount.path, SOURCE=source, FOLDER=self.folder,
                   ORDINARY=ORDINARY)
        probe = run(["unshare", "--mount", "--propagation", "unchanged", "sh", "-c",
                     "mount --make-rprivate / 2>/dev/null || mount --make-rprivate /dev"], env=env)
        if probe.status != 0:
            self.skipTest("no mount namespace of our own: " + probe.err.strip())
        done = run(["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", OUTSIDE], 60, env=env)
        self.assertEqual(0, done.status, done)
        self.assertIn("stored", done.out)
        self.assertIn("owner 65534", done.out)
        self.assertIn("all well", done.out)
        wait_for(lambda: not processes_of(self.mount.path), 20, "the daemon has ended")
        self.assertEqual([sha256_of(source)], self.sandbox.hashes(self.session))


if __name__ == "__main__":
    main()
