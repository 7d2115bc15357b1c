"""What a mount shows: names, sizes, times, attributes and bytes, what it costs in requests, and that it stays the same."""

import base64
import errno
import json
import os
import re
import signal
import statistics
import stat
import subprocess
import time

from harness import (SESSIONFS, SLACK, TOKEN, MountCase, SharedMount, attribute, begin, check_log, main, needs, paper_bytes, read, run,
                     sha256_of, wait_for, write)

TEST_WAIT = 60 * SLACK  # for what comes in seconds


class Counts(SharedMount):
    options = {"ttl": "10m", "remove": "recent"}

    def test_a_folder_counts_what_this_mount_did_at_once(self):
        os.listdir(self.dir)
        count = lambda: int(attribute(self.dir, "documents"))  # noqa: E731
        self.assertEqual(0, count())
        for n in (1, 2):
            self.assertEqual(0, run(["cp", self.paper("bill %d.pdf" % n), self.dir]).status)
            self.assertEqual(n, count())
        self.assertEqual(0, run(["cp", os.path.join(self.sources, "bill 1.pdf"), os.path.join(self.dir, "same.pdf")]).status)
        self.assertEqual(2, count(), "two names of one document count once")
        os.unlink(os.path.join(self.dir, "bill 2.pdf"))
        self.assertEqual(1, count())


class OneFolder(SharedMount):
    options = {"ttl": "1s"}

    def add(self, filename, data=None, **fields):
        data = data if data is not None else paper_bytes()
        answer = self.sandbox.document(self.session, filename, base64=base64.b64encode(data).decode(), **fields)
        return data, answer

    def test_a_document_has_its_name_size_time_and_bytes(self):
        data, answer = self.add("bill.pdf", created_ms=1_600_000_000_000)
        path = os.path.join(self.dir, "bill.pdf")
        wait_for(lambda: os.path.exists(path), 10, "it is listed")
        info = os.stat(path)
        self.assertEqual((len(data), 1_600_000_000, 0o400, 1),
                         (info.st_size, int(info.st_mtime), stat.S_IMODE(info.st_mode), info.st_nlink))
        self.assertEqual((len(data) + 511) // 512, info.st_blocks)
        self.assertEqual(data, read(path))
        with open(path, "rb") as f:
            f.seek(1000)
            self.assertEqual(data[1000:1100], f.read(100))

    @needs("getfattr")
    def test_getfattr_prints_what_the_service_says(self):
        data, _ = self.add("bill.pdf", status="processed", pages=3)
        path = os.path.join(self.dir, "bill.pdf")
        wait_for(lambda: os.path.exists(path), 10, "it is listed")
        done = run(["getfattr", "-d", "--absolute-names", path])
        self.assertEqual(0, done.status, done)
        for line in ('user.sessionfs.status="processed"', 'user.sessionfs.state="ready"', 'user.sessionfs.filename="bill.pdf"',
                     'user.sessionfs.sha256="%s"' % sha256_of(data), 'user.sessionfs.size="%d"' % len(data),
                     'user.sessionfs.mime="application/pdf"', 'user.mime_type="application/pdf"', 'user.sessionfs.pages="3"'):
            self.assertIn(line, done.out.split("\n"))
        self.assertIn("user.sessionfs.as_of=", done.out)
        self.assertNotIn("user.sessionfs.error", done.out)
        self.assertNotIn("user.sessionfs.json", done.out, "it is given on request alone")
        self.assertEqual("bill.pdf", json.loads(attribute(path, "json"))["filename"])
        done = run(["getfattr", "-d", "--absolute-names", self.dir])
        self.assertIn('user.sessionfs.id="%s"' % self.session, done.out.split("\n"))
        self.assertIn('user.sessionfs.documents="1"', done.out.split("\n"))
        self.assertIn('user.sessionfs.ready="1"', done.out.split("\n"))

    def test_a_document_asked_to_be_parsed_goes_from_processing_to_processed(self):
        self.add("bill.pdf", status="uploaded")
        path = os.path.join(self.dir, "bill.pdf")
        wait_for(lambda: os.path.exists(path), 10, "it is listed")
        self.assertEqual(("uploaded", "stored"), (attribute(path, "status"), attribute(path, "state")))
        done = self.mount.command("run", self.dir)
        self.assertEqual(0, done.status, done)
        seen = []

        def look():
            os.listdir(self.dir)
            one = (attribute(path, "status"), attribute(path, "state"))
            if seen[-1:] != [one]:
                seen.append(one)
            return one == ("processed", "ready")
        wait_for(look, 30, "processed")
        self.assertIn("processing", [state for _, state in seen], seen)

    def test_a_document_nobody_asked_to_be_parsed_rests(self):
        path = os.path.join(self.dir, "bill.pdf")
        self.assertEqual(0, run(["cp", self.paper(), path]).status)
        self.sandbox.control("POST", "/clock", {"advance_ms": 3_600_000})
        os.listdir(self.dir)
        self.assertEqual(("uploaded", "stored"), (attribute(path, "status"), attribute(path, "state")))

    def test_a_remote_change_shows_after_the_ttl(self):
        self.add("one.pdf")
        wait_for(lambda: os.listdir(self.dir) == ["one.pdf"], 10, "one")
        _, two = self.add("two.pdf")
        wait_for(lambda: sorted(os.listdir(self.dir)) == ["one.pdf", "two.pdf"], 10, "two")
        self.sandbox.control("POST", "/detach", {"session": self.session, "document": two["id"]})
        wait_for(lambda: os.listdir(self.dir) == ["one.pdf"], 10, "one again")

    def test_an_attribute_outside_user_or_unknown_is_absent(self):
        self.add("one.pdf")
        path = os.path.join(self.dir, "one.pdf")
        wait_for(lambda: os.path.exists(path), 10, "it is listed")
        for name in ("user.sessionfs.nothing", "system.posix_acl_access", "user.other"):
            self.refused(errno.ENODATA, os.getxattr, path, name)
        for name, value in (("user.comment", b"x"), ("user.sessionfs.status", b"x")):
            self.refused(errno.EOPNOTSUPP, os.setxattr, path, name, value)

    def test_bytes_that_do_not_match_their_hash_are_not_given(self):
        self.add("one.pdf", sha256="0" * 64)
        path = os.path.join(self.dir, "one.pdf")
        wait_for(lambda: os.path.exists(path), 10, "it is listed")
        self.expects(r".")
        with self.assertRaises(OSError):
            read(path)

    def test_a_session_is_reached_by_its_id_too(self):
        self.add("one.pdf")
        link = os.path.join(self.mount.path, self.session)
        self.assertTrue(os.path.islink(link))
        self.assertEqual(os.path.basename(self.dir), os.path.basename(os.readlink(link)))
        self.assertNotIn(self.session, os.listdir(self.mount.path))
        wait_for(lambda: os.listdir(link) == ["one.pdf"], 10, "listed through the link")

    def test_each_attribute_that_is_listed_can_be_read_and_each_that_can_be_read_is_listed(self):
        names = ["status", "state", "id", "filename", "sha256", "mime", "size", "created", "pages", "source", "source.url", "workspace",
                 "parsing.status", "parsing.updated", "parsing.version", "parsing.config", "error", "progress", "as_of"]
        self.add("parsed.pdf", status="processed", pages=3)
        self.add("failed.pdf", status="failed")
        self.add("bare.pdf", without=["pages", "source"])
        write(os.path.join(self.dir, "local.tmp"), b"x")
        wait_for(lambda: len(os.listdir(self.dir)) == 4, 10, "they are listed")
        seen = set()
        for name in [*(os.path.join(self.dir, n) for n in os.listdir(self.dir)), self.dir]:
            listed = set(os.listxattr(name))
            can_be_read = {"user.sessionfs." + n for n in names + ["template", "documents", "ready", "processing", "failed"]
                           if attribute(name, n) is not None}
            self.assertEqual(can_be_read, listed - {"user.mime_type"}, name)
            self.assertEqual("user.sessionfs.mime" in listed, "user.mime_type" in listed, name)
            seen |= listed
        self.assertLessEqual({"user.sessionfs." + n for n in ("pages", "size", "template", "parsing.status")}, seen)

    def test_names_of_the_system_are_refused_so_that_ls_asks_but_once(self):
        self.sandbox.document(self.session, "a.pdf", text="a")
        wait_for(lambda: "a.pdf" in os.listdir(self.dir), 10, "listed")
        for name, number in (("security.selinux", errno.EOPNOTSUPP), ("trusted.x", errno.EOPNOTSUPP),
                             ("system.posix_acl_access", errno.ENODATA)):
            self.refused(number, os.getxattr, os.path.join(self.dir, "a.pdf"), name)

    def test_a_folder_listed_again_and_again_shows_each_change_whoever_made_it(self):
        here, names = set(), ["remote %d.pdf" % i for i in range(12)]
        for i, name in enumerate(names):
            with os.scandir(self.dir) as half_read:  # a reader from before the change fills the kernel's cache with it
                next(half_read, None)
                document = self.sandbox.document(self.session, name, text=name)
                self.assertEqual(0, self.mount.command("refresh", self.dir).status)
                here.add(name)
                wait_for(lambda: here <= set(os.listdir(self.dir)), 10, "%s shows" % name)
                list(half_read)
            self.assertEqual(here, set(os.listdir(self.dir)))
            if i % 3 == 2:
                own = "own %d.tmp" % i
                write(os.path.join(self.dir, own), b"x")
                self.assertEqual(here | {own}, set(os.listdir(self.dir)))
                os.rename(os.path.join(self.dir, own), os.path.join(self.dir, "two.tmp"))
                self.assertEqual(here | {"two.tmp"}, set(os.listdir(self.dir)))
                os.unlink(os.path.join(self.dir, "two.tmp"))
                self.assertEqual(here, set(os.listdir(self.dir)))
                self.sandbox.control("POST", "/detach", {"session": self.session, "document": document["id"]})
                self.assertEqual(0, self.mount.command("refresh", self.dir).status)
                here.remove(name)
                wait_for(lambda: set(os.listdir(self.dir)) == here, 10, "%s is gone" % name)
                self.assertFalse(os.path.exists(os.path.join(self.dir, name)))

    def test_statfs_tells_large_constants_without_a_request(self):
        before = self.sandbox.last_request()
        info = os.statvfs(self.dir)
        self.assertEqual(255, info.f_namemax)
        self.assertGreater(info.f_bavail * info.f_frsize, 1 << 30)
        self.assertEqual(before, self.sandbox.last_request())


HOSTILE = ["../../etc/passwd", "two\nlines.pdf", "x" * 300 + ".pdf", "", "a/b/c.pdf", "..", ".", "\u202efdp.exe", "tab\there.pdf",
           ".sessionfs", ".results", "~$draft.docx", "name.pdf", "name.pdf", "name.pdf", "caf\u00e9.pdf", "\U0001f9fe.pdf", "-rf", "bell\a.pdf"]
# As raw JSON: half a surrogate pair, a NUL.
HOSTILE_JSON = ['"lone \\ud800.pdf"', '"nul \\u0000 in.pdf"']


class HostileNames(MountCase):
    def test_all_are_listed_and_openable_and_stay_as_they_were_over_remounts(self):
        folder = self.new_folder()
        sandbox = self.new_sandbox(folder)
        session = sandbox.session("../evil/session")
        same = sandbox.session("../evil/session")
        wanted = {}
        for name in HOSTILE:
            data = paper_bytes()
            wanted[sha256_of(data)] = data
            sandbox.document(session, name, base64=base64.b64encode(data).decode())
        for raw in HOSTILE_JSON:
            data = paper_bytes()
            wanted[sha256_of(data)] = data
            sandbox.control("POST", "/document", {"session": session, "filename_json": raw,
                                                  "base64": base64.b64encode(data).decode()})
        data = paper_bytes()
        wanted[sha256_of(data)] = data
        sandbox.control("POST", "/document", json.dumps({
            "session": session, "filename": "bad @@ bytes.pdf", "base64": base64.b64encode(data).decode()}).encode().replace(b"@@", b"\xff\xc3("))
        mount = self.new_mount(sandbox, folder, [session, same])

        def look():
            seen = {}
            for name in sorted(mount.folders()):
                inside = os.path.join(mount.path, name)
                self.assertEqual(mount.path, os.path.dirname(os.path.realpath(inside)))
                for entry in os.scandir(os.fsencode(inside)):
                    entry.name.decode("utf-8")
                    self.assertNotRegex(entry.name, rb"[\x00-\x1f/\x7f]")
                    self.assertNotIn("\u202e".encode(), entry.name)
                    self.assertLessEqual(len(entry.name), 255)
                    info = entry.stat(follow_symlinks=False)
                    seen[entry.name] = (name, info.st_ino, info.st_mtime_ns, sha256_of(read(entry.path)))
            return seen
        first = None
        for ending in (mount.stop, mount.kill, mount.stop):
            mount.start().names_seen(2)
            wait_for(lambda: len(look()) >= len(wanted), 20, "all are listed")
            seen = look()
            self.assertEqual(sorted(wanted), sorted(one[3] for one in seen.values()))
            self.assertEqual(len(wanted), len({one[1] for one in seen.values()}), "inode numbers repeat")
            if first is not None:
                self.assertEqual(first, seen)
            first = seen
            self.assertIn(b"name.pdf", seen)
            ending()

    def test_fifty_documents_of_one_name_have_fifty_stable_names_and_the_oldest_keeps_it(self):
        folder = self.new_folder()
        sandbox = self.new_sandbox(folder)
        session = sandbox.session("Q1")
        ids = [sandbox.document(session, "invoice.pdf", text="invoice number %d" % i, created_ms=1_700_000_000_000 + i * 1000)["id"]
               for i in range(50)]
        mount = self.new_mount(sandbox, folder, [session]).start().names_seen(1)
        inside = os.path.join(mount.path, "Q1")
        wait_for(lambda: len(os.listdir(inside)) == 50, 20, "all fifty")
        self.assertEqual(ids[0], attribute(os.path.join(inside, "invoice.pdf"), "id"))
        before = {n: attribute(os.path.join(inside, n), "id") for n in os.listdir(inside)}
        self.assertEqual(sorted(ids), sorted(before.values()))
        for n in before:
            self.assertRegex(n, r"^invoice.*\.pdf$")
        sandbox.control("POST", "/detach", {"session": session, "document": ids[0]})
        self.assertEqual(0, mount.command("refresh", inside).status)
        wait_for(lambda: len(os.listdir(inside)) == 49, 20, "one has left")
        self.assertNotIn("invoice.pdf", os.listdir(inside), "a name once shown has moved to another document")
        mount.stop()
        mount.start().names_seen(1)
        wait_for(lambda: len(os.listdir(inside)) == 49, 20, "after a remount")
        for n in os.listdir(inside):
            self.assertEqual(before[n], attribute(os.path.join(inside, n), "id"))

    def test_names_live_in_the_state_folder_and_survive_the_loss_of_the_cache(self):
        folder = self.new_folder()
        sandbox = self.new_sandbox(folder)
        session = sandbox.session("Q1")
        for i in range(6):
            sandbox.document(session, "invoice.pdf", text="invoice number %d" % i)
        mount = self.new_mount(sandbox, folder, [session]).start().names_seen(1)
        inside = os.path.join(mount.path, "Q1")
        wait_for(lambda: len(os.listdir(inside)) == 6, 20, "all six")
        before = {n: (attribute(os.path.join(inside, n), "id"), os.stat(os.path.join(inside, n)).st_ino) for n in os.listdir(inside)}
        mount.stop()
        self.assertEqual(0, run(["rm", "-rf", mount.options["cache_dir"]]).status)
        mount.start().names_seen(1)
        wait_for(lambda: len(os.listdir(inside)) == 6, 20, "all six again")
        self.assertEqual(before, {n: (attribute(os.path.join(inside, n), "id"), os.stat(os.path.join(inside, n)).st_ino)
                                  for n in os.listdir(inside)})


class Requests(MountCase):
    """What it costs, counted at the service."""

    def setting(self, count, **options):
        folder = self.new_folder()
        sandbox = self.new_sandbox(folder)
        session = sandbox.session("Big")
        if count:
            sandbox.document(session, "document.pdf", count=count, pattern="document-{n}.pdf", size=1500)
        mount = self.new_mount(sandbox, folder, [session], **options).start().names_seen(1)
        return sandbox, mount, session, os.path.join(mount.path, "Big")

    @needs("getfattr")
    def test_a_thousand_documents_are_67_list_requests_and_then_none_within_the_ttl(self):
        sandbox, mount, session, inside = self.setting(1000, ttl="10m")
        wait_for(lambda: len(os.listdir(inside)) == 1000, 60, "a thousand names")
        time.sleep(0.5)  # whatever was begun for it has been sent
        pages = [r for r in sandbox.requests() if r["method"] == "GET" and re.search(r"/sessions/[^/]+/documents$", r["path"])]
        self.assertEqual(67, len(pages))
        before = sandbox.last_request()
        done = run(["getfattr", "-d", "-R", "--absolute-names", inside])
        self.assertEqual(0, done.status, done.err)
        self.assertEqual(1000, done.out.count('user.sessionfs.status='))
        done = run(["ls", "-l", inside])
        self.assertEqual((0, 1001), (done.status, len(done.out.rstrip("\n").split("\n"))))
        self.assertEqual(before, sandbox.last_request(), "getfattr -d and ls -l of what is listed cost requests: %r" % [
            (r["method"], r["path"]) for r in sandbox.requests(before)][:5])

    def test_one_copy_of_a_new_file_is_one_sign_one_put_one_upload_call_and_nothing_else(self):
        sandbox, mount, session, inside = self.setting(0, ttl="10m")
        os.listdir(inside)
        time.sleep(0.3)
        before = sandbox.last_request()
        data = paper_bytes()
        source = os.path.join(mount.folder, "new.pdf")
        with open(source, "wb") as f:
            f.write(data)
        self.assertEqual(0, run(["cp", source, inside]).status)
        time.sleep(0.5)
        sent = sandbox.requests(before)
        self.assertEqual([("POST", "/vapor/signed-storage-url"), ("PUT", None),
                          ("POST", "/extractions/sessions/%s/documents/upload" % session)],
                         [(r["method"], r["path"] if r["origin"] == "api" else None) for r in sent])
        self.assertEqual([True, False, True], [r["had_authorization"] for r in sent])
        put = sent[1]
        self.assertNotIn("Expect", put["headers"])
        self.assertNotIn("Transfer-Encoding", put["headers"])
        self.assertEqual(str(len(data)), put["headers"]["Content-Length"])

    def test_the_token_goes_to_the_api_alone_and_into_no_log_attribute_or_command_line(self):
        sandbox, mount, session, inside = self.setting(3, ttl="10m", log="debug")
        wait_for(lambda: len(os.listdir(inside)) == 3, 20, "three")
        for name in os.listdir(inside):
            read(os.path.join(inside, name))
        for r in sandbox.requests():
            self.assertEqual(r["origin"] == "api", r["had_authorization"], r)
        self.assertIn("storage", {r["origin"] for r in sandbox.requests()})
        self.assertNotIn(TOKEN, mount.log())
        self.assertNotIn("Signature=", mount.log(), "a signed link is as good as a token")
        self.assertNotIn(TOKEN.encode(), read("/proc/%d/cmdline" % mount.process.pid))
        found = subprocess.run(["grep", "-rl", TOKEN, mount.options["state_dir"], mount.options["cache_dir"]],
                               stdout=subprocess.PIPE, check=False).stdout
        self.assertEqual(b"", found)

    def test_reading_a_document_twice_fetches_it_once(self):
        sandbox, mount, session, inside = self.setting(1, ttl="10m")
        wait_for(lambda: len(os.listdir(inside)) == 1, 20, "one")
        path = os.path.join(inside, os.listdir(inside)[0])
        first = read(path)
        before = sandbox.last_request()
        self.assertEqual(first, read(path))
        mount.stop()
        mount.start().names_seen(1)
        self.assertEqual(first, read(path))
        self.assertEqual([], [r for r in sandbox.requests(before) if r["origin"] == "storage"])

    def test_a_ttl_of_0_asks_once_for_each_listing(self):
        sandbox, mount, session, inside = self.setting(3, ttl="0s")
        wait_for(lambda: len(os.listdir(inside)) == 3, 20, "three")
        time.sleep(0.5)
        before = sandbox.last_request()
        for _ in range(5):
            self.assertEqual(3, len(os.listdir(inside)))
        self.assertLessEqual(len(sandbox.requests(before)), 10)

    def test_ten_listings_at_once_ask_once(self):
        sandbox, mount, session, inside = self.setting(30, ttl="10m")
        mount.stop()
        sandbox.set(latency_ms=200)
        mount.options["cache_dir"] += "-new"
        mount.write_config()
        mount.start().names_seen(1)
        before = sandbox.last_request()
        done = run("for i in 1 2 3 4 5 6 7 8 9 10; do ls '%s' > /dev/null & done; wait" % inside)
        self.assertEqual(0, done.status, done)
        asked = [r["path"] + "?" + r["query"] for r in sandbox.requests(before) if r["method"] == "GET"]
        self.assertEqual(sorted(set(asked)), sorted(asked), "a page was asked for twice")

    def test_listing_cold_and_warm_takes_milliseconds_not_seconds(self):
        sandbox, mount, session, inside = self.setting(1000, ttl="10m")
        began = time.monotonic()
        wait_for(lambda: len(os.listdir(inside)) == 1000, 60, "a thousand names")
        cold = time.monotonic() - began
        times = []
        for _ in range(5):
            began = time.monotonic()
            run(["ls", "-l", inside])
            times.append(time.monotonic() - began)
        print("     1,000 documents: cold %.0f ms, warm ls -l %.0f ms" % (cold * 1000, statistics.median(times) * 1000))
        self.assertLess(statistics.median(times), 2)


    def test_metrics_count_what_was_asked_and_what_memory_answered(self):
        sandbox, mount, session, inside = self.setting(0)
        sandbox.document(session, "a.pdf", text="the text of a")
        wait_for(lambda: os.listdir(inside) == ["a.pdf"], 10, "listed")
        os.listdir(inside)
        self.assertEqual(b"the text of a", read(os.path.join(inside, "a.pdf")))
        write(os.path.join(inside, "own.pdf"), paper_bytes())
        text = read(os.path.join(mount.path, ".sessionfs", "metrics")).decode()
        values = {}
        for line in text.split("\n"):
            if line and not line.startswith("#"):
                self.assertRegex(line, r'^[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.]+$')
                values[line.rsplit(" ", 1)[0]] = float(line.rsplit(" ", 1)[1])
        asked = [r for r in sandbox.requests() if r["method"] == "GET" and r["origin"] == "api" and r["status"] == 200]
        self.assertEqual(len(asked), values['sessionfs_requests_total{to="api",method="GET",status="200"}'])
        self.assertEqual(1, values['sessionfs_requests_total{to="storage",method="PUT",status="200"}'])
        self.assertEqual(values['sessionfs_request_seconds_count{to="api"}'],
                         sum(v for k, v in values.items() if k.startswith('sessionfs_requests_total{to="api"')))
        self.assertGreaterEqual(values['sessionfs_bytes_total{to="storage",direction="received"}'], 13)
        self.assertGreaterEqual(values['sessionfs_bytes_total{to="storage",direction="sent"}'], 1000)
        self.assertEqual(1, values['sessionfs_answers_total{of="content",result="miss"}'])
        self.assertGreaterEqual(values['sessionfs_answers_total{of="listings",result="hit"}'], 1)
        self.assertEqual((1, 0), (values["sessionfs_sessions"], values['sessionfs_files{state="waiting"}']))
        self.assertNotIn(TOKEN, text)

    def test_a_folder_used_lately_is_asked_about_and_who_looks_then_does_not_wait_behind_that(self):
        sandbox, mount, session, inside = self.setting(1, ttl="1s")
        wait_for(lambda: len(os.listdir(inside)) == 1, 10, "listed")
        sandbox.document(session, "new.pdf", text="new")
        time.sleep(1.5)  # whatever was begun for the listing has been sent
        sandbox.fault(origin="api", action="stall", times=1)
        since = sandbox.last_request()
        wait_for(lambda: sandbox.requests(since), 30, "a request although nobody looks")
        self.assertEqual({"GET"}, {r["method"] for r in sandbox.requests(since)})
        self.assertIn("new.pdf", os.listdir(inside), "the old names: it waited for the request that is stalled")
        self.assertGreaterEqual(len(sandbox.requests(since)), 2)

    def test_SIGHUP_and_refresh_forget_what_is_remembered(self):
        sandbox, mount, session, inside = self.setting(1, ttl="1h")
        wait_for(lambda: len(os.listdir(inside)) == 1, 20, "one")
        for count, forget in ((2, lambda: mount.process.send_signal(signal.SIGHUP)),
                              (3, lambda: self.assertEqual(0, mount.command("refresh", inside).status))):
            sandbox.document(session, "more.pdf", text="document %d" % count)
            self.assertEqual(count - 1, len(os.listdir(inside)))
            forget()
            wait_for(lambda: len(os.listdir(inside)) == count, 10, "%d documents" % count)

    def test_forty_thousand_lookups_leave_no_memory_behind(self):
        if b"__asan" in read(SESSIONFS) or b"__tsan" in read(SESSIONFS):
            self.skipTest("a sanitizer keeps what is freed")
        sandbox, mount, session, inside = self.setting(100, ttl="1h")
        wait_for(lambda: len(os.listdir(inside)) == 100, 20, "a hundred")
        names = [os.path.join(inside, n) for n in os.listdir(inside)]

        def resident_kib():
            with open("/proc/%d/status" % mount.process.pid, encoding="ascii") as f:
                return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1))

        def look_up(first, last):
            for i in range(first, last):
                os.path.exists("%s/no %d.pdf" % (inside, i))
                os.getxattr(names[i % 100], "user.sessionfs.status")
        look_up(0, 5_000)
        before = resident_kib()
        look_up(5_000, 45_000)
        after = resident_kib()
        print("     resident before and after 40,000 look-ups: %d and %d KiB" % (before, after))
        self.assertLess(after - before, 2_000)


class WhileItComes(MountCase):
    """A document is read while it is on its way; what is wrong is seen at its end at the latest, and never kept."""

    def setting(self, size, **fields):
        self.folder = self.new_folder()
        self.sandbox = self.new_sandbox(self.folder)
        session = self.sandbox.session("Big")
        self.data = paper_bytes(size=size)
        self.sandbox.document(session, "big.pdf", base64=base64.b64encode(self.data).decode(), **fields)
        self.mount = self.new_mount(self.sandbox, self.folder, [session], ttl="10m").start().names_seen(1)
        self.path = os.path.join(self.mount.path, "Big", "big.pdf")
        wait_for(lambda: os.path.exists(self.path), 10, "it is listed")
        self.since = self.sandbox.last_request()
        return self.path

    def downloads(self):
        return [r for r in self.sandbox.requests(self.since) if r["origin"] == "storage"]

    def cached(self):
        """Names in the content cache: of what is whole, of what is being written."""
        names = [n for _, folders, names in os.walk(self.mount.options["cache_dir"]) for n in names
                 if n.startswith(".new-") or re.fullmatch(r"[0-9a-z-]+\.[0-9]+", n)]
        return [n for n in names if n[0] != "."], [n for n in names if n[0] == "."]

    def change_at_the_service(self, data):
        """The bytes behind the sandbox's back: its records still tell the hash of the old ones."""
        found = [os.path.join(top, n) for top, _, names in os.walk(self.sandbox.state) for n in names
                 if os.path.getsize(os.path.join(top, n)) == len(self.data)]
        self.assertEqual(1, len(found), found)
        write(found[0], data)

    def test_the_first_bytes_are_there_before_the_last_and_a_reader_gets_them_all(self):
        path = self.setting(4 << 20)
        self.sandbox.fault(route="download", action="slow_response", bytes_per_s=3 << 20)
        with open(path, "rb", buffering=0) as f:
            self.assertEqual(self.data[:4096], f.read(4096))
            whole, begun = self.cached()
            self.assertEqual((0, 1), (len(whole), len(begun)), "all of it had come by then")
            self.assertEqual(self.data[4096:], f.read())
        self.assertEqual((1, 0), tuple(map(len, self.cached())))
        self.assertEqual(self.data, read(path))
        self.assertEqual(1, len(self.downloads()))

    def test_many_readers_at_many_places_share_one_fetch_and_one_who_is_killed_leaves_it(self):
        path = self.setting(4 << 20)
        self.sandbox.fault(route="download", action="slow_response", bytes_per_s=2 << 20)
        readers = [begin(["tail", "-c", "+%d" % (i * 500_000 + 1), path]) for i in range(8)]
        self.kept += readers
        wait_for(self.downloads, 10, "it is being fetched")
        readers[7].kill()  # its bytes are the last
        self.assertEqual(-signal.SIGKILL, readers[7].wait(TEST_WAIT))
        self.assertEqual(([], 1), (self.cached()[0], len(self.cached()[1])), "it had to wait for the end")
        for i, one in enumerate(readers[:7]):
            self.assertEqual(self.data[i * 500_000:], one.communicate(timeout=TEST_WAIT)[0])
        self.assertEqual(1, len(self.downloads()))

    def test_wrong_bytes_end_in_EIO_for_who_has_begun_and_leave_nothing_to_anybody(self):
        path = self.setting(4 << 20)
        wrong = bytearray(self.data)
        wrong[1 << 20] ^= 1
        self.change_at_the_service(bytes(wrong))
        self.sandbox.fault(route="download", action="slow_response", bytes_per_s=4 << 20)
        self.expects(r"do not have its sha256")
        with open(path, "rb", buffering=0) as f, open(path, "rb", buffering=0) as other:
            self.assertEqual(self.data[:4096], f.read(4096))
            self.refused(errno.EIO, lambda: [f.read(1 << 16) for _ in range(1000)])
            self.assertEqual([], self.cached()[0])
            wait_for(lambda: not self.cached()[1], 10, "what came is removed")
            self.change_at_the_service(self.data)
            # Neither goes on in another fetch with what it has begun in this one, whatever the kernel had kept.
            for one in (f, other):
                for at in (0, 1 << 20, len(self.data) - 1):
                    self.refused(errno.EIO, os.pread, one.fileno(), 1, at)
        self.assertEqual(self.data, read(path))
        self.assertEqual(2, len(self.downloads()))

    def test_wrong_bytes_that_nobody_has_read_of_are_fetched_again(self):
        path = self.setting(100_000)
        self.change_at_the_service(self.data[:-1] + b"?")
        self.expects(r"do not have its sha256")
        reader = begin(["cat", path])
        self.kept.append(reader)
        wait_for(lambda: "do not have its sha256" in self.mount.log(), 10, "the log tells")
        self.change_at_the_service(self.data)
        self.assertEqual(self.data, reader.communicate(timeout=TEST_WAIT)[0])
        self.assertEqual(0, reader.returncode)

    def test_a_connection_that_breaks_is_taken_up_where_it_broke(self):
        for ranges in ("on", "off"):
            with self.subTest(ranges=ranges):
                path = self.setting(4 << 20)
                self.sandbox.set(storage__range=ranges)
                self.sandbox.fault(route="download", action="truncate", bytes=3 << 20)
                self.assertEqual(self.data, read(path))
                self.assertEqual([200, 206 if ranges == "on" else 200], [r["status"] for r in self.downloads()])
                self.mount.stop()

    def test_one_that_never_comes_whole_is_EIO_and_not_kept(self):
        path = self.setting(4 << 20)
        self.sandbox.set(storage__range="off")
        self.sandbox.fault(route="download", action="truncate", bytes=1 << 20, times=0)
        self.expects(r".")
        with open(path, "rb", buffering=0) as f:
            self.assertEqual(self.data[:4096], f.read(4096))
            self.refused(errno.EIO, os.pread, f.fileno(), 100, 2 << 20)
        self.assertEqual(([], []), self.cached())
        self.sandbox.clear_faults()
        self.assertEqual(self.data, read(path))

    def test_an_unmount_does_not_wait_for_what_comes(self):
        path = self.setting(4 << 20)
        self.sandbox.fault(route="download", action="slow_response", bytes_per_s=20_000)
        with open(path, "rb", buffering=0) as f:
            self.assertEqual(self.data[:4096], f.read(4096))
        self.assertEqual(0, self.mount.stop())
        self.assertEqual([], self.cached()[0])

    def test_a_document_without_a_hash_is_read_likewise(self):
        path = self.setting(4 << 20, without=["sha256"])
        self.assertIsNone(attribute(path, "sha256"))
        self.sandbox.fault(route="download", action="truncate", bytes=3 << 20)
        self.assertEqual(self.data, read(path))
        self.assertEqual([200, 206], [r["status"] for r in self.downloads()])
        self.assertEqual(self.data, read(path))
        self.assertEqual(2, len(self.downloads()))


class ByDesignOfTheLog(MountCase):
    def test_the_check_of_the_log_can_fail(self):
        with self.assertRaises(AssertionError):
            check_log("info: fine\nerror: raydocs: GET /x: 503\n", [])
        check_log("error: raydocs: GET /x: 503\n", ["503"])
        with self.assertRaises(AssertionError):
            check_log("==12==ERROR: AddressSanitizer: heap-use-after-free\n", ["."])


if __name__ == "__main__":
    main()
