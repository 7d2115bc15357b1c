"""The commands beside mounting, each by what it prints and by its exit status."""

import json
import os
import pty
import re
import signal
import stat
import time

from harness import (ROOT, SESSIONFS, TOKEN, MountCase, environment, main, mounts_under, needs, paper_bytes, processes_of, read,
                     run, wait_for, write)

NOBODYS = "00000000-0000-4000-8000-000000000000"


class Commands(MountCase):
    """A sandbox, and an account of this user's own: configuration, state and cache lie in the test's folder."""

    def setUp(self):
        super().setUp()
        self.folder = self.new_folder()
        self.sandbox = self.new_sandbox(self.folder)
        self.path = os.path.join(self.folder, "mnt")
        os.mkdir(self.path)
        places = {k: os.path.join(self.folder, v) for k, v in
                  {"XDG_CONFIG_HOME": "config", "XDG_STATE_HOME": "state", "XDG_CACHE_HOME": "cache",
                   "XDG_RUNTIME_DIR": "run"}.items()}
        self.env = environment(places, home=self.folder)
        self.url = ["-o", "url=" + self.sandbox.url]

    def tearDown(self):
        for pid in processes_of(self.path):
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not processes_of(self.path), 40, "the mounts have ended")
        super().tearDown()

    def command(self, *words, data=None, seconds=60, **more):
        done = run([SESSIONFS, *words], seconds, env=self.env, data=None if data is None else data.encode(), **more)
        self.assertNotIn(TOKEN, done.out + done.err)
        return done

    def well(self, *words, **more):
        done = self.command(*words, **more)
        self.assertEqual(0, done.status, done)
        return done

    def fails(self, status, pattern, *words, **more):
        done = self.command(*words, **more)
        self.assertEqual(status, done.status, done)
        self.assertRegex(done.err, pattern)
        return done

    def set_up(self, *sessions):
        return self.well("setup", "raydocs", *self.url, data="\n".join([TOKEN, *sessions, ""]))

    def mounted(self, *words):
        self.well("raydocs", self.path, "-o", "rate=off", *words)

    def shows(self, *names):
        wait_for(lambda: sorted(os.listdir(self.path)) == sorted(names), 15, "the root shows %r" % (names,))

    def end_mount(self):
        run(["fusermount3", "-u", self.path], 20)
        wait_for(lambda: not processes_of(self.path), 40, "the daemon has ended")

    def token_path(self):
        return os.path.join(self.folder, "config", "sessionfs", "raydocs.token")


class Manual(MountCase):
    PAGE = os.path.join(ROOT, "fs", "sessionfs.1")

    def test_the_manual_has_each_option_and_each_command_that_the_help_has_and_no_other(self):
        page = read(self.PAGE).decode()
        shown = run([SESSIONFS, "-h"]).out
        options = shown[shown.index("Options"):].split("and what mount.fuse3 knows")[0]
        helped = set(re.findall(r"^    ([a-z_]+)(?:=| )", options, re.M))
        named = set(re.findall(r"^\.It Cm ([a-z_]+)(?==| Ns|$)", page[page.index(".Sh OPTIONS"):page.index(".Sh COPYING IN")], re.M))
        named |= set(re.findall(r", Cm ([a-z_]+)= Ns", page))
        self.assertEqual(helped, named)
        self.assertGreater(len(helped), 30)
        helped = set(re.findall(r"^    sessionfs ([a-z]+) ", shown, re.M)) - {"SOURCE"}
        named = set(re.findall(r"^\.It Cm ([a-z]+)", page[page.index(".Sh COMMANDS"):page.index(".Sh OPTIONS")], re.M))
        self.assertEqual(helped, named)
        for default in re.findall(r"\[([^\]]+)\]$", options, re.M):
            self.assertIn(".Bq " + default, page)

    @needs("groff")
    def test_the_manual_is_set_without_a_warning(self):
        done = run(["groff", "-mandoc", "-Tutf8", "-ww", "-z", self.PAGE])
        self.assertEqual((0, ""), (done.status, done.err))


class Setup(Commands):
    def test_setup_stores_the_token_for_the_user_alone_and_remembers_the_address(self):
        done = self.set_up()
        self.assertIn("Supplier bills", done.out)
        self.assertIn("Accounts payable", done.out)
        self.assertEqual(0o600, stat.S_IMODE(os.stat(self.token_path()).st_mode))
        self.well("check", "raydocs")

    def test_a_refused_token_is_not_stored_and_the_old_one_stays(self):
        self.fails(1, "API Keys", "setup", "raydocs", *self.url, data="rd_live_wrong\n")
        self.assertFalse(os.path.exists(self.token_path()))
        self.set_up()
        self.fails(1, "refuses", "setup", "raydocs", data="rd_live_wrong\n")
        self.assertEqual(TOKEN.encode() + b"\n", read(self.token_path()))

    def test_no_token_at_all_is_a_sentence(self):
        self.fails(1, "no token was given", "setup", "raydocs", *self.url, data="")

    def test_a_token_that_cannot_be_checked_is_stored_and_that_is_said(self):
        self.expects("")
        self.sandbox.control("POST", "/down", {"how": "refuse"})
        self.fails(2, "does not answer now", "setup", "raydocs", *self.url, data=TOKEN + "\n")
        self.sandbox.control("POST", "/up")
        self.well("check", "raydocs")

    def test_a_token_file_stays_where_it_is(self):
        mine = write(os.path.join(self.folder, "mine"), TOKEN.encode())
        self.fails(1, "chmod 600|others can read", "setup", "raydocs", *self.url, "--token-file", mine, data="")
        os.chmod(mine, 0o600)
        self.well("setup", "raydocs", *self.url, "--token-file", mine, data="")
        self.assertFalse(os.path.exists(self.token_path()))
        self.well("check", "raydocs")
        os.unlink(mine)
        self.fails(3, "mine", "check", "raydocs")

    def test_a_name_of_ones_own_becomes_a_section(self):
        self.well("setup", "bills", "-o", "service=raydocs,url=" + self.sandbox.url, data=TOKEN + "\n")
        self.well("check", "bills")
        self.assertIn(b"[bills]", read(os.path.join(self.folder, "config", "sessionfs", "config")))

    def test_at_a_terminal_the_token_is_not_shown_and_a_template_can_be_chosen(self):
        session = self.sandbox.session("Q1")
        try:
            pid, terminal = pty.fork()
        except OSError as e:
            self.skipTest("no terminal can be had: %s" % e)
        if pid == 0:
            os.execve(SESSIONFS, [SESSIONFS, "setup", "raydocs", *self.url], self.env)
        seen = b""

        def until(text):
            nonlocal seen
            end = time.monotonic() + 20
            while text not in seen:
                self.assertLess(time.monotonic(), end, seen)
                seen += os.read(terminal, 4096)
        try:
            until(b"Token")
            time.sleep(0.2)
            os.write(terminal, TOKEN.encode() + b"\n")
            until(b"empty: none")
            os.write(terminal, b"1\n")
            until(b"empty: done")
            os.write(terminal, b"https://dashboard.example/sessions/" + session.encode() + b"\n")
            until(b"Q1")
            os.write(terminal, b"\n")
            until(b"Now mount it")
        finally:
            _, status = os.waitpid(pid, 0)
            os.close(terminal)
        self.assertEqual(0, os.waitstatus_to_exitcode(status), seen)
        self.assertNotIn(TOKEN.encode(), seen)
        self.mounted()
        self.shows("Q1")
        os.mkdir(os.path.join(self.path, "Q2"))
        self.shows("Q1", "Q2")


class Sessions(Commands):
    def test_a_session_added_without_a_mount_shows_at_the_next_one(self):
        one, two = self.sandbox.session("Q1"), self.sandbox.session("Q1")
        done = self.set_up("https://dashboard.example/sessions/%s/documents" % one, two)
        self.assertIn("Q1", done.out)
        self.mounted("-o", "discover=no")
        wait_for(lambda: len(os.listdir(self.path)) == 2, 15, "both show")
        names = sorted(os.listdir(self.path))
        self.assertIn("Q1", names)
        self.assertEqual(one, os.getxattr(os.path.join(self.path, "Q1"), "user.sessionfs.id").decode())
        self.assertTrue([n for n in names if n != "Q1"][0].startswith("Q1 ("), names)

    def test_a_session_is_forgotten_by_its_name_with_and_without_a_mount(self):
        one, two, three = (self.sandbox.session(n) for n in ("Q1", "Q2", "Q3"))
        self.set_up(one, two, three)
        self.well("forget", "raydocs", "Q1")
        self.fails(1, "Q9", "forget", "raydocs", "Q9")
        self.mounted("-o", "discover=no")
        self.shows("Q2", "Q3")
        self.well("forget", "raydocs", "Q2")
        self.shows("Q3")
        self.fails(1, "Q9", "forget", "raydocs", "Q9")
        self.end_mount()
        self.well("add", "raydocs", one)
        self.mounted("-o", "discover=no")
        self.shows("Q1", "Q3")

    def test_what_holds_no_session_is_refused_and_the_rest_is_added(self):
        self.set_up()
        session = self.sandbox.session("Q1")
        self.fails(1, "no session's id in 'nonsense'", "add", "raydocs", "nonsense", session)
        self.fails(1, NOBODYS, "add", "raydocs", NOBODYS)
        self.mounted("-o", "discover=no")
        self.shows("Q1")

    def test_a_wrong_call_is_a_sentence(self):
        for words in (["add"], ["add", "raydocs"], ["forget", "raydocs"], ["check"], ["setup"], ["check", "raydocs", "x"],
                      ["refresh"], ["wait"], ["run"], ["retry"], ["discard"], ["discard", "--all", "x"],
                      ["status", "--yaml"], ["status", "a", "b"], ["wait", "--timeout", "soon", "x"]):
            done = self.command(*words)
            self.assertIn(done.status, (1, 3), done)
            self.assertEqual(1, done.err.count("\n"), done)
            self.assertTrue(done.err.startswith("sessionfs: "), done)


class Check(Commands):
    def test_the_exit_status_tells_refused_from_away_from_not_configured(self):
        self.fails(3, "setup raydocs", "check", "raydocs", *self.url)
        self.set_up()
        self.assertIn("sessions-read", self.well("check", "raydocs").out)
        self.sandbox.control("POST", "/down", {"how": "refuse"})
        self.fails(2, "does not answer", "check", "raydocs")
        self.sandbox.control("POST", "/up")
        self.sandbox.control("POST", "/revoke", {"token": TOKEN})
        self.fails(1, "API Keys", "check", "raydocs")


class Status(Commands):
    def ours(self):
        """Of `status --json`, which tells of all mounts here, those of this test."""
        return [one for one in json.loads(self.command("status", "--json").out)
                if one.get("mountpoint", one.get("state_dir", "")).startswith(self.folder)]

    def test_nothing_waits_is_0_with_and_without_a_mount(self):
        self.assertEqual([], self.ours())
        session = self.sandbox.session("Q1")
        self.set_up(session)
        self.mounted()
        self.shows("Q1")
        self.well("status", self.path)
        self.assertEqual([(self.path, 0)], [(one["mountpoint"], one["waiting"]) for one in self.ours()])
        self.assertEqual(0, json.loads(self.well("status", "--json", self.path).out)["waiting"])
        self.end_mount()
        self.assertEqual([], self.ours())

    def test_what_waits_is_told_with_and_without_a_mount(self):
        session = self.sandbox.session("Q1")
        self.set_up(session)
        self.mounted("-o", "upload=background")
        self.shows("Q1")
        self.sandbox.control("POST", "/down", {"how": "refuse"})
        write(os.path.join(self.path, "Q1", "bill.pdf"), paper_bytes())
        done = self.command("status")
        self.assertEqual(1, done.status, done)
        self.assertIn("bill.pdf", done.out)
        self.end_mount()
        done = self.command("status")
        self.assertEqual(1, done.status, done)
        self.assertIn("waiting: 1", done.out)
        self.assertEqual([(False, 1)], [(one["mounted"], one["waiting"]) for one in self.ours()])
        self.sandbox.control("POST", "/up")
        self.mounted()
        wait_for(lambda: self.command("status", self.path).status == 0, 30, "it is uploaded")
        self.assertEqual(1, len(self.sandbox.hashes(session)))


class Paths(Commands):
    def setUp(self):
        super().setUp()
        self.session = self.sandbox.session("Q1")
        self.set_up(self.session)

    def test_a_path_in_no_mount_is_a_sentence(self):
        for word in ("refresh", "wait", "run", "retry", "discard"):
            self.fails(1, "in no sessionfs mount", word, self.folder)
            self.fails(1, "No such file", word, self.folder + "/none")
        self.fails(1, "in no sessionfs mount", "status", self.folder)

    def test_refresh_shows_what_is_new_from_any_way_to_say_the_path(self):
        self.mounted()
        self.shows("Q1")
        inside = os.path.join(self.path, "Q1")
        os.symlink(inside, os.path.join(self.folder, "link"))
        for i, (words, cwd) in enumerate([([inside], "/"), (["."], inside), (["../Q1/"], inside), (["link"], self.folder),
                                          ([self.path], "/"), ([os.path.join(self.path, self.session)], "/")]):
            self.assertEqual(i, len(os.listdir(inside)))
            self.sandbox.document(self.session, "%d.pdf" % i, text="text %d" % i)
            self.well("refresh", *words, cwd=cwd)
            wait_for(lambda: len(os.listdir(inside)) == i + 1, 5, "%r shows the new one" % words)

    def test_a_mount_without_attributes_is_found_by_its_lock(self):
        self.mounted("-o", "noxattr")
        self.shows("Q1")
        self.well("refresh", os.path.join(self.path, "Q1"))
        self.well("status", self.path)

    def test_wait_tells_stored_from_ready_from_failed_from_late(self):
        self.mounted("-o", "ttl=1s")
        self.shows("Q1")
        inside = os.path.join(self.path, "Q1")
        self.well("wait", inside)  # nothing in it
        one = self.sandbox.document(self.session, "one.pdf", text="one", status="uploaded")
        self.well("refresh", inside)
        wait_for(lambda: os.listdir(inside) == ["one.pdf"], 5, "listed")
        self.fails(3, "sessionfs run", "wait", inside)
        self.well("run", "--wait", inside)
        self.well("wait", inside, os.path.join(inside, "one.pdf"))
        self.sandbox.document(self.session, "two.pdf", text="two", status="parsing")
        self.well("refresh", inside)
        wait_for(lambda: len(os.listdir(inside)) == 2, 5, "listed")
        self.fails(2, "1 of the documents", "wait", "--timeout", "300ms", inside)
        self.fails(1, "none.pdf", "wait", os.path.join(inside, "none.pdf"))
        del one

    def test_discard_and_retry_want_to_know_of_what(self):
        self.mounted("-o", "upload=background")
        self.shows("Q1")
        self.assertRegex(self.well("retry", "--all").out, "0")
        self.sandbox.document(self.session, "one.pdf", text="one")
        inside = os.path.join(self.path, "Q1")
        self.well("refresh", inside)
        wait_for(lambda: os.listdir(inside) == ["one.pdf"], 5, "listed")
        self.fails(1, "one.pdf", "discard", os.path.join(inside, "one.pdf"))

    def test_all_passes_over_a_dead_mount_and_speaks_of_the_live_ones(self):
        self.mounted()
        self.shows("Q1")
        dead = os.path.join(self.folder, "dead")
        os.mkdir(dead)
        self.well("raydocs", dead, "-o", "rate=off,state_dir=%s/s2,cache_dir=%s/c2" % (self.folder, self.folder))
        for pid in processes_of(dead):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not processes_of(dead), 10, "killed")
        try:
            done = self.well("retry", "--all")
        finally:
            run(["fusermount3", "-u", "-z", dead], 20)
        self.assertRegex(done.err, dead + ": skipped")
        self.assertRegex(done.out, self.path + ": 0")
        self.assertNotIn(self.path + ":", done.err)


class MountPoints(Commands):
    def setUp(self):
        super().setUp()
        self.set_up(self.sandbox.session("Q1"))

    def test_a_dead_mount_is_taken_off_first(self):
        self.mounted()
        self.shows("Q1")
        for pid in processes_of(self.path):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not processes_of(self.path), 10, "killed")
        self.assertIn(self.path, mounts_under(self.path))
        self.mounted()
        self.shows("Q1")
        self.assertEqual(1, len(mounts_under(self.path)))

    def test_a_mount_point_in_use_is_refused_and_keeps_working(self):
        self.mounted()
        self.shows("Q1")
        self.fails(2, "mounted already", "raydocs", self.path)
        self.shows("Q1")

    def test_a_file_is_no_mount_point(self):
        self.fails(2, "not a directory", "raydocs", write(os.path.join(self.folder, "file"), b""))

    def test_a_folder_with_files_can_be_mounted_on(self):
        write(os.path.join(self.path, "mine"), b"mine")
        self.mounted()
        self.shows("Q1")
        self.end_mount()
        self.assertEqual(["mine"], os.listdir(self.path))

    def test_a_state_folder_of_another_service_is_refused(self):
        state = "state_dir=" + os.path.join(self.folder, "shared")
        self.mounted("-o", state)
        self.end_mount()
        other = self.new_folder()
        sandbox = self.new_sandbox(other)
        self.fails(1, "belongs to", "raydocs", self.path, "-o", state + ",url=" + sandbox.url)
        self.assertEqual([], mounts_under(self.path))


if __name__ == "__main__":
    main()
