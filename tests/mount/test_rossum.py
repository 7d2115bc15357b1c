"""Rossum on a mount: what it does otherwise than the service the other tests were made with. Its queues are folders, an upload is a
task whose end has to be awaited, and the service tells no sizes."""

import errno
import io
import json
import os
import threading
import time
import unittest
import zipfile

import harness
from harness import (SLACK, SLOW, MountCase, RossumSandbox, attribute, begin, finish, main, mounts_under, paper_bytes, processes_of, read,
                     run, sha256_of, wait_for, write)

harness.SERVICE = "rossum"  # whatever the environment says


class RossumCase(MountCase):
    def setting(self, queues=("Invoices",), mount=True, **options):
        self.folder = self.new_folder()
        self.sandbox = self.new_sandbox(self.folder)
        self.ids = {name: self.sandbox.session(name) for name in queues}
        self.queue = self.ids[queues[0]]
        self.mount = self.new_mount(self.sandbox, self.folder, **{"ttl": "1s", **options})
        if mount:
            self.mount.start().names_seen(len(queues))
        self.dir = os.path.join(self.mount.path, queues[0])

    def path(self, name, queue=None):
        return os.path.join(self.mount.path, queue, name) if queue else os.path.join(self.dir, name)

    def copy(self, name, data, seconds=60):
        """cp into the queue's folder; how it ended."""
        return run(["cp", write(os.path.join(self.new_folder(), name), data), self.path(name)], seconds)

    def sent(self, since=0):
        return [r for r in self.sandbox.requests(since) if r["route"].startswith("rossum_upload")]

    def settled(self):
        wait_for(lambda: self.mount.status()["waiting"] == 0, 60, "nothing waits")


class UnderWay(RossumCase):
    """An upload's bytes are a document as soon as they came, long before the mount knows which."""

    def begin_upload(self, name, data, **options):
        self.setting(upload="background", remove="yes", **options)
        self.sandbox.set(rossum__task_ms=800)
        self.assertEqual(0, self.copy(name, data).status)
        wait_for(lambda: self.sent() and self.sent()[0]["done"], 10, "its bytes were sent")

    def test_what_is_removed_when_its_bytes_were_sent_goes_from_the_service_too(self):
        self.begin_upload("a.pdf", paper_bytes())
        os.unlink(self.path("a.pdf"))
        self.assertEqual([], os.listdir(self.dir))
        self.settled()
        wait_for(lambda: self.sandbox.annotations(self.queue), 20, "its import begins")
        wait_for(lambda: not self.sandbox.documents(self.queue), 30, "it is deleted")

    def test_what_is_replaced_when_its_bytes_were_sent_goes_from_the_service_too(self):
        data = paper_bytes()
        self.begin_upload("a.pdf", data)
        write(self.path("a.part"), data)
        os.rename(self.path("a.part"), self.path("a.pdf"))
        self.assertEqual(["a.pdf"], os.listdir(self.dir))
        self.settled()
        wait_for(lambda: self.sandbox.hashes(self.queue) == [sha256_of(data)], 30, "one is left")
        self.assertEqual(["a.pdf"], os.listdir(self.dir))

    def test_what_is_moved_when_its_bytes_were_sent_arrives_where_it_was_moved_to(self):
        data = paper_bytes()
        self.begin_upload("a.pdf", data, queues=("Invoices", "Other"))
        os.rename(self.path("a.pdf"), self.path("a.pdf", "Other"))
        self.settled()
        wait_for(lambda: not self.sandbox.documents(self.queue), 30, "it left the first queue")
        self.assertEqual([sha256_of(data)], self.sandbox.hashes(self.ids["Other"]))


class Sizes(RossumCase):
    """The service tells none. What this mount sent says its own; the others are learned from the documents, and kept."""

    def foreign(self, count, size=200_000):
        for i in range(count):
            self.sandbox.document(self.queue, "theirs %02d.pdf" % i, size=size + i)

    def sizes(self):
        return sorted(os.stat(self.path(n)).st_size for n in os.listdir(self.dir))

    def content_requests(self):
        return [r for r in self.sandbox.requests() if r["route"] == "rossum_content"]

    def test_sizes_are_learned_in_the_background_without_reading_whole_documents_and_are_kept(self):
        self.setting(mount=False)
        self.foreign(8)
        self.sandbox.fault(route="rossum_content", action="slow_response", bytes_per_s=20_000, times=0)  # 10 s each
        self.mount.start().names_seen(1)
        self.assertEqual(8, len(os.listdir(self.dir)))
        wanted = [200_000 + i for i in range(8)]
        wait_for(lambda: self.sizes() == wanted, 30, "all sizes are known")
        self.assertEqual(8, len(self.content_requests()))
        self.assertEqual([str(n) for n in wanted], sorted(attribute(self.path(n), "size") for n in os.listdir(self.dir)))
        self.mount.stop()
        self.mount.start().names_seen(1)
        self.assertEqual(wanted, self.sizes())
        self.assertEqual(8, len(self.content_requests()), "they were asked for again")

    def test_a_listing_waits_for_no_size_and_the_command_learns_them_first(self):
        """At the pace the service allows; a listing is one request all the same."""
        self.setting(mount=False, rate="540/min")
        self.foreign(12)
        self.mount.start().names_seen(1)
        before = self.sandbox.last_request()
        self.assertGreater(self.sizes().count(0), 6)
        listing = [r["route"] for r in self.sandbox.requests(before) if r["route"] != "rossum_content"]
        self.assertEqual(1, listing.count("rossum_annotations"), listing)
        done = self.mount.command("refresh", "--sizes", self.dir, seconds=30)
        self.assertEqual((0, ""), (done.status, done.err), done)
        self.assertEqual([200_000 + i for i in range(12)], self.sizes())

    def test_the_background_takes_a_small_part_of_the_budget(self):
        self.setting(mount=False, rate="540/min")
        self.foreign(40)
        self.mount.start().names_seen(1)
        os.listdir(self.dir)
        wait_for(self.content_requests, 10, "it begins")
        began = time.monotonic()
        time.sleep(2)
        asked = len(self.content_requests())
        self.assertLess(asked, 2 * (time.monotonic() - began) + 2)  # of nine a second
        os.stat(self.dir)

    def test_a_document_of_unknown_size_is_whole_when_it_is_opened(self):
        self.setting(mount=False)
        self.sandbox.fault(route="rossum_content", status=500, times=1)  # the learner gives way
        self.sandbox.fault(route="rossum_content", action="stall", ms=300, times=0)
        data = paper_bytes(size=70_000)
        self.sandbox.control("POST", "/rossum/annotation", {"queue": int(self.queue), "filename": "a.pdf", "text": "%PDF" + "x" * 5000})
        self.mount.start().names_seen(1)
        self.assertEqual(["a.pdf"], os.listdir(self.dir))
        self.assertEqual(b"%PDF" + b"x" * 5000, read(self.path("a.pdf")))
        self.assertEqual(5004, os.stat(self.path("a.pdf")).st_size)
        self.assertEqual(0, self.copy("b.pdf", data).status)
        self.assertEqual(len(data), os.stat(self.path("b.pdf")).st_size)

    def test_a_session_whose_sizes_cannot_be_learned_is_told(self):
        self.setting(mount=False)
        self.foreign(3)
        self.sandbox.fault(route="rossum_content", status=404, times=0, body={"detail": "Not found."})
        self.mount.start().names_seen(1)
        os.listdir(self.dir)
        done = self.mount.command("refresh", "--sizes", self.dir)
        self.assertEqual(1, done.status, done)
        self.assertIn("3 documents", done.err)


def archive(members):
    """Of name: bytes."""
    room = io.BytesIO()
    with zipfile.ZipFile(room, "w") as z:
        for name, data in members.items():
            z.writestr(name, data)
    return room.getvalue()


class Uploads(RossumCase):
    """What a close says and what comes of a file."""

    def test_the_members_of_an_archive_show_under_their_own_names_and_the_close_succeeds(self):
        self.setting()
        members = {"one.pdf": paper_bytes(), "two.pdf": paper_bytes()}
        done = self.copy("bundle.zip", archive(members))
        self.assertEqual(0, done.status, done)
        wait_for(lambda: sorted(os.listdir(self.dir)) == sorted(members), 20, "the members and nothing else are listed")
        for name, data in members.items():
            self.assertEqual(data, read(self.path(name)), name)
            self.assertIsNotNone(attribute(self.path(name), "parent"))
        self.assertEqual(0, self.mount.status()["waiting"])
        self.mount.stop()
        self.mount.start().names_seen(1)
        self.assertEqual(sorted(members), sorted(os.listdir(self.dir)))

    def test_what_a_hook_adds_shows_under_its_own_name_beside_the_file(self):
        self.setting()
        self.sandbox.set(rossum__hook_add="^with")
        data = paper_bytes()
        self.assertEqual(0, self.copy("with more.pdf", data).status)
        self.assertEqual(data, read(self.path("with more.pdf")))
        wait_for(lambda: len(os.listdir(self.dir)) == 2, 20, "what was added is listed")


    def refusal(self, number, name, words, data=None):
        """Closing it fails with this errno, and the bytes are kept beside the service's words."""
        data = data or paper_bytes()
        fd = os.open(self.path(name), os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, data)
        self.refused(number, os.close, fd)
        kept = os.path.join(self.mount.path, ".sessionfs", "failed", "Invoices", name)
        wait_for(lambda: os.path.exists(kept), 10, "its bytes are kept")
        self.assertEqual(data, read(kept))
        self.assertIn(words, read(kept + ".why.txt").decode())
        self.assertIn(words, attribute(kept, "error"))
        os.unlink(kept)
        self.assertNotIn(name, os.listdir(self.dir))

    def test_each_refusal_is_its_errno_and_its_words(self):
        self.expects(r"refused|failed|upload")
        self.setting(formats="any", close_timeout="60s")
        with self.subTest("400"):
            self.sandbox.fault(route="rossum_upload", status=400, body={"detail": "Value must be valid JSON.", "code": "bad_request"})
            self.refusal(errno.EINVAL, "a.pdf", "Value must be valid JSON.")
        with self.subTest("a task that failed"):
            self.sandbox.set(rossum__task_fail="^task")
            self.refusal(errno.EINVAL, "task.pdf", "Something went wrong (error 7c1e).")
        with self.subTest("a type that is not taken, as an attachment's status"):
            self.refusal(errno.EINVAL, "slides.pptx", "mime_type", b"PK\x03\x04 no archive")
        with self.subTest("a broken image"):
            self.sandbox.set(rossum__broken_images=True)
            self.refusal(errno.EINVAL, "photo.png", "broken_image", b"no image at all")
        with self.subTest("an import that failed at once"):
            self.sandbox.set(rossum__import_fail="^import", rossum__import_ms=0)
            fd = os.open(self.path("import.pdf"), os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(fd, paper_bytes())
            self.refused(errno.EINVAL, os.close, fd)
            self.assertIn("the import failed", attribute(self.path("import.pdf"), "error"))
            self.assertEqual("failed_import", self.sandbox.documents(self.queue)[0]["status"])
        with self.subTest("413"):
            self.sandbox.set(rossum__max_bytes=20_000)
            self.refusal(errno.EFBIG, "large.pdf", "", paper_bytes(size=30_000))
        with self.subTest("403"):
            self.sandbox.fault(route="rossum_upload", status=403, body={"detail": "You may not.", "code": "access_forbidden"})
            self.refusal(errno.EACCES, "not mine.pdf", "You may not.")

    @unittest.skipUnless(SLOW, "SESSIONFS_SLOW=1 runs it: only time tells")
    def test_an_import_that_a_hook_stopped_is_refused_within_a_minute(self):
        self.expects(r"refused|failed|upload")
        self.setting(close_timeout="90s")
        self.sandbox.set(rossum__hook_prevent="^stop", rossum__hook_leaves="created")
        self.refusal(errno.EINVAL, "stop.pdf", "hook")

    def test_the_limit_of_forty_million_bytes_is_known_before_anything_is_sent(self):
        self.setting()
        with open(self.path("large.pdf"), "wb", 0) as f:
            f.seek(39_999_990)
            self.refused(errno.EFBIG, f.write, b"x" * 11)
            self.refused(errno.EFBIG, os.ftruncate, f.fileno(), 40_000_001)
            os.ftruncate(f.fileno(), 0)
        os.unlink(self.path("large.pdf"))
        self.assertEqual([], self.sent())

    def test_an_outage_keeps_the_file_with_the_services_words_and_sends_it_once_later(self):
        self.expects(r"wait|503|away|upload")
        self.setting(close_timeout="2s")
        self.sandbox.fault(method="POST", path="/uploads$", status=503, times=0,
                           body={"detail": "Maintenance until noon.", "code": "service_unavailable"})
        data = paper_bytes()
        self.assertEqual(1, self.copy("a.pdf", data).status)
        # It is tried again now and then, and does not wait at that moment.
        wait_for(lambda: attribute(self.path("a.pdf"), "state") == "waiting", 20 * SLACK, "it waits")
        self.assertIn("Maintenance until noon.", attribute(self.path("a.pdf"), "error"))
        self.sandbox.clear_faults()
        self.mount.command("retry", "--all")
        self.settled()
        self.assertEqual([sha256_of(data)], self.sandbox.hashes(self.queue))

    def test_a_lost_answer_leads_to_one_document(self):
        self.expects(r"wait|answer|upload")
        self.setting(close_timeout="40s")
        data = paper_bytes()
        self.sandbox.fault(route="rossum_upload", action="close", when="after")
        self.assertEqual(0, self.copy("a.pdf", data).status)
        self.assertEqual([sha256_of(data)], self.sandbox.hashes(self.queue))
        self.assertEqual(1, len(self.sent()), "it was looked for before it was sent again")

    def test_each_stage_shows_in_its_state(self):
        self.setting(upload="background")
        self.sandbox.set(rossum__task_ms=400, rossum__create_ms=200, rossum__import_ms=1500)
        self.assertEqual(0, self.copy("a.pdf", paper_bytes()).status)
        seen = []

        def is_ready():
            os.listdir(self.dir)
            state = attribute(self.path("a.pdf"), "state")
            if seen[-1:] != [state]:
                seen.append(state)
            return state == "ready"
        wait_for(is_ready, 30, "it is ready")
        self.assertEqual(["uploading", "processing", "ready"], [s for s in seen if s != "queued"])

    def test_the_raw_form_sends_the_bytes_alone_and_the_start_says_what_it_lacks(self):
        self.setting(upload_form="raw")
        data = paper_bytes()
        self.assertEqual(0, self.copy("R\u00e9sum\u00e9 100%.pdf", data).status)
        self.assertEqual(["rossum_upload_named"], [r["route"] for r in self.sent()])
        self.assertEqual([("R\u00e9sum\u00e9 100%.pdf", sha256_of(data), {})],
                         [(d["filename"], d["sha256"], d["metadata"]) for d in self.sandbox.documents(self.queue)])
        self.assertRegex(self.mount.log(), r"upload_form=raw: .*neither metadata nor values")

    def test_metadata_and_values_go_with_each_file(self):
        self.setting(metadata="batch:7", values="currency:eur")
        self.assertEqual(0, self.copy("a.pdf", paper_bytes()).status)
        there, = self.sandbox.documents(self.queue)
        self.assertEqual("7", there["metadata"]["batch"])
        self.assertEqual(os.stat(self.path("a.pdf")).st_size, there["metadata"]["sessionfs"]["size"])
        self.assertEqual({"upload:currency": "eur"}, there["values"])

    def test_values_of_one_queue_go_into_that_queue_alone(self):
        self.setting(queues=("Invoices", "Other"), values="Other/currency:eur")
        for queue in ("Invoices", "Other"):
            self.assertEqual(0, run(["cp", write(os.path.join(self.folder, "a.pdf"), paper_bytes()), self.path("a.pdf", queue)]).status)
        self.assertNotIn("values", self.sandbox.documents(self.ids["Invoices"])[0])
        self.assertEqual({"upload:currency": "eur"}, self.sandbox.documents(self.ids["Other"])[0]["values"])

    def test_metadata_over_four_kilobytes_is_refused_at_the_start(self):
        self.setting(mount=False)
        with open(os.path.join(self.mount.config_home, "sessionfs", "config"), "a") as f:
            for i in range(25):
                f.write("metadata = note %d:%s\n" % (i, "x" * 160))
        self.mount.start(wait=False)
        self.assertNotEqual(0, self.mount.process.wait(20 * SLACK))
        self.mount.process = None
        self.assertRegex(self.mount.log(), "metadata takes .* 4096")


class Folders(RossumCase):
    def test_queues_of_one_name_are_told_apart_by_their_workspaces(self):
        self.setting(mount=False)
        other = self.sandbox.control("POST", "/rossum/workspace", {"name": "London"})["id"]
        self.sandbox.control("POST", "/rossum/queue", {"name": "Invoices", "workspace": other})
        self.mount.start().names_seen(2)
        self.assertEqual(["Invoices", "Invoices (London)"], sorted(self.mount.folders()))

    def test_only_queues_that_are_named_show_by_id_or_by_name(self):
        self.setting(queues=("A", "B", "C"), mount=False)
        self.mount.sessions = ["A", self.ids["B"]]
        self.mount.write_config()
        self.mount.start().names_seen(2)
        self.assertEqual(["A", "B"], sorted(self.mount.folders()))

    def test_queues_are_neither_made_nor_removed(self):
        self.setting()
        self.refused(errno.EPERM, os.mkdir, os.path.join(self.mount.path, "New"))
        self.refused(errno.EPERM, os.rmdir, self.dir)

    def test_a_queue_that_is_not_active_refuses_at_create(self):
        self.setting(mount=False)
        self.sandbox.control("POST", "/rossum/queue", {"id": int(self.queue), "status": "deletion_requested"})
        self.mount.start().names_seen(1)
        self.refused(errno.EROFS, os.open, self.path("a.pdf"), os.O_WRONLY | os.O_CREAT)
        self.assertEqual([], self.sent())

    def test_what_a_queue_takes_is_its_own_list_or_the_services(self):
        self.expects(r"not accepted|formats|refused")
        self.setting(mount=False)
        self.sandbox.control("POST", "/rossum/queue", {"name": "Pictures", "workspace": self.sandbox.workspace,
                                                       "accepted_mime_types": ["image/*"]})
        self.mount.start().names_seen(2)
        self.refused(errno.EOPNOTSUPP, os.open, self.path("a.pptx"), os.O_WRONLY | os.O_CREAT)
        self.refused(errno.EOPNOTSUPP, os.open, self.path("a.pdf", "Pictures"), os.O_WRONLY | os.O_CREAT)
        self.assertEqual(0, run(["cp", os.path.join(harness.SAMPLES, "scan.png"), self.path("a.png", "Pictures")]).status)
        table = archive({"[Content_Types].xml": b"<Types/>", "xl/workbook.xml": b"<workbook/>"})
        self.assertEqual(0, self.copy("a.xlsx", table).status)
        self.assertEqual([sha256_of(table)], self.sandbox.hashes(self.queue))

    def test_a_document_goes_from_queue_to_queue_as_a_copy_and_a_deletion_where_that_is_allowed(self):
        for remove in ("recent", "yes"):
            with self.subTest(remove=remove):
                self.setting(queues=("Invoices", "Other"), remove=remove)
                self.sandbox.document(self.queue, "theirs.pdf", size=5000)
                wait_for(lambda: os.listdir(self.dir) == ["theirs.pdf"], 20, "it is listed")
                if remove == "recent":
                    self.refused(errno.EPERM, os.rename, self.path("theirs.pdf"), self.path("theirs.pdf", "Other"))
                    os.link(self.path("theirs.pdf"), self.path("linked.pdf", "Other"))
                    self.assertEqual((1, 1), tuple(len(self.sandbox.documents(i)) for i in self.ids.values()))
                else:
                    os.rename(self.path("theirs.pdf"), self.path("moved.pdf", "Other"))
                    self.assertEqual(["moved.pdf"], os.listdir(os.path.join(self.mount.path, "Other")))
                    self.assertEqual("deleted", self.sandbox.annotations(self.queue)[0]["status"])
                routes = [r["route"] for r in self.sandbox.writes()]
                self.assertEqual(["rossum_copy"] if remove == "recent" else ["rossum_copy", "rossum_delete"], routes)

    def test_what_is_known_of_an_upload_is_in_its_attributes_also_after_a_remount(self):
        self.setting(remove="yes")
        self.assertEqual(0, self.copy("a.pdf", paper_bytes()).status)
        names = ("upload", "creator", "organization", "document", "id", "size", "sha256")
        before = {n: attribute(self.path("a.pdf"), n) for n in names}
        self.assertNotIn(None, before.values())
        self.mount.stop()
        self.mount.start().names_seen(1)
        wait_for(lambda: os.listdir(self.dir), 10, "it is listed")
        self.mount.command("refresh", self.dir)
        self.assertEqual(before, {n: attribute(self.path("a.pdf"), n) for n in names})

    def test_rejection_and_a_failed_export_can_be_read(self):
        self.setting(mount=False)
        for status, message in (("rejected", "not ours"), ("failed_export", "the ERP said no")):
            self.sandbox.document(self.queue, status + ".pdf", size=900, status=status,
                                  fields={"messages": [{"type": "error", "content": message}]})
        self.mount.start().names_seen(1)
        self.assertEqual("rejected: not ours", attribute(self.path("rejected.pdf"), "error"))
        self.assertEqual("the export failed: the ERP said no", attribute(self.path("failed_export.pdf"), "error"))
        self.assertEqual(["ready", "ready"], [attribute(self.path(n), "state") for n in os.listdir(self.dir)])


class Requests(RossumCase):
    def routes(self, since):
        return [r["route"] for r in self.sandbox.requests(since) if r["route"] not in ("rossum_content", "rossum_queues", "rossum_workspaces")]

    def test_a_large_queue_costs_a_request_per_hundred_then_none_then_few(self):
        """10,000 with SESSIONFS_SLOW=1. The figures are printed."""
        count = 10_000 if SLOW else 1_000
        self.setting(mount=False, ttl="3s")
        self.sandbox.control("POST", "/rossum/annotation", {"queue": int(self.queue), "count": count, "size": 900})
        self.sandbox.fault(route="rossum_content", status=500, times=0)  # no size is learned meanwhile
        self.expects(r"500")
        self.mount.start().names_seen(1)
        since = self.sandbox.last_request()
        self.assertEqual(count, len(os.listdir(self.dir)))
        first = self.routes(since)
        since = self.sandbox.last_request()
        self.assertEqual(count, len(os.listdir(self.dir)))
        again = self.routes(since)
        self.sandbox.document(self.queue, "new.pdf", size=900)
        since = self.sandbox.last_request()
        wait_for(lambda: len(os.listdir(self.dir)) == count + 1, 20, "the new one is listed")
        change = self.routes(since)
        print("     %d documents: %d requests, again within the ttl %d, after a change %d" % (count, len(first), len(again), len(change)))
        self.assertEqual(["rossum_annotations"] * (count // 100), first)
        self.assertEqual([], again)
        self.assertLessEqual(len(change), 6)  # of which each look while nothing was due is one

    def all_routes(self, since):
        time.sleep(0.7 * SLACK)  # what comes late counts as well
        return [r["route"] for r in self.sandbox.requests(since)]

    def test_the_list_of_queues_proves_the_token_and_is_all_that_a_mount_and_a_remount_ask_for(self):
        self.setting(queues=("A", "B"), mount=False, ttl="30s")
        for _ in range(2):
            since = self.sandbox.last_request()
            self.assertEqual(0, self.mount.command("test", self.mount.path).status)
            wait_for(lambda: self.mount.folders() == ["A", "B"], 10, "both show")
            self.assertEqual(["rossum_queues"], self.all_routes(since))
            since = self.sandbox.last_request()
            self.assertEqual([], os.listdir(os.path.join(self.mount.path, "B")))
            self.assertEqual({"rossum_annotations", "rossum_queue"}, set(self.all_routes(since)))
            self.assertEqual(0, self.mount.unmount().status)
            wait_for(lambda: not processes_of(self.mount.path), 20, "the daemon has ended")

    def test_a_token_that_is_refused_at_a_remount_ends_it_in_a_sentence(self):
        self.setting()
        self.mount.stop()
        self.sandbox.control("POST", "/rossum/revoke", {})
        since = self.sandbox.last_request()
        done = self.mount.command("test", self.mount.path)
        self.assertEqual(3, done.status, done)
        self.assertEqual(1, len(done.err.strip().split("\n")), done.err)
        self.assertIn("refuses the token", done.err)
        self.assertEqual({"rossum_queues"}, set(self.all_routes(since)))
        self.assertEqual([], mounts_under(self.mount.path))

    def test_a_right_to_list_queues_that_is_missing_proves_the_token(self):
        self.setting(mount=False)
        self.sandbox.fault(route="rossum_queues", status=403, times=0, body={"detail": "No permission."})
        self.expects("403")
        done = self.mount.command("test", self.mount.path)
        self.assertEqual(0, done.status, done)
        self.assertEqual(0, self.mount.unmount().status)
        wait_for(lambda: not processes_of(self.mount.path), 20, "the daemon has ended")

    def test_html_is_read_back_as_the_service_keeps_it(self):
        self.setting()
        sent = b"<html><body><script>alert(1)</script><p>Invoice</p></body></html>"
        self.assertEqual(0, self.copy("a.html", sent).status)
        self.mount.stop()
        run(["rm", "-rf", self.mount.options["cache_dir"]])
        self.mount.start().names_seen(1)
        wait_for(lambda: os.listdir(self.dir), 10, "it is listed")
        self.assertIn(b"Invoice", read(self.path("a.html")))
        self.assertNotIn(b"<script>", read(self.path("a.html")))
        self.assertEqual(len(read(self.path("a.html"))), os.stat(self.path("a.html")).st_size)


class Tokens(RossumCase):
    def test_a_token_that_ends_in_the_middle_of_uploads_loses_and_doubles_none(self):
        """50 with SESSIONFS_SLOW=1."""
        count = 50 if SLOW else 12
        self.setting(mount=False, username="ann")
        self.mount.write_token("correct horse")
        self.mount.start().names_seen(1)
        time.sleep(2.2)  # a token that is refused right after its login is no reason for another
        papers = [write(os.path.join(self.folder, "bill %02d.pdf" % i), paper_bytes()) for i in range(count)]
        copies = [begin(["cp", *papers[i::4], self.dir]) for i in range(4)]
        self.kept.extend(copies)
        for third in (1, 2):
            wait_for(lambda: len(self.sandbox.documents(self.queue)) >= count * third // 3, 60, "a part is there")
            self.sandbox.control("POST", "/rossum/revoke", {})
            if not SLOW:
                break
            time.sleep(2.2)
        for one in copies:
            self.assertEqual(0, finish(one, 120).status)
        self.assertEqual(sorted(map(sha256_of, papers)), self.sandbox.hashes(self.queue))
        self.assertEqual(count, self.sandbox.count_all())
        logins = [r for r in self.sandbox.requests() if r["route"] == "rossum_login"]
        self.assertEqual(3 if SLOW else 2, len(logins), "one login for all, each time")


if __name__ == "__main__":
    main()
