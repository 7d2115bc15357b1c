"""What may be done and what may not: documents are read-only, removing destroys nothing that was there before, folders are sessions."""

import base64
import errno
import mmap
import os
import shutil
import stat
import threading
import time
import unittest

from harness import (PYTHON, MountCase, SharedMount, attribute, begin, environment, finish, main, needs, paper_bytes, read, run,
                     sha256_of, wait_for, write)


class Rules(SharedMount):
    def there_before(self, name="old.pdf"):
        """A document that this mount did not bring."""
        data = paper_bytes()
        self.sandbox.document(self.session, name, base64=base64.b64encode(data).decode())
        self.assertEqual(0, self.mount.command("refresh", self.dir).status)
        path = os.path.join(self.dir, name)
        wait_for(lambda: name in os.listdir(self.dir), 10, "it is listed")
        return path, data

    def copied_in(self, name="new.pdf", folder=None):
        source = self.paper(name)
        path = os.path.join(folder or self.dir, name)
        self.assertEqual(0, run(["cp", source, path]).status)
        return path, read(source)

    def ids_there(self, session=None):
        return sorted(d["id"] for d in self.sandbox.documents(session or self.session))


class ReadOnlyDocuments(Rules):
    def test_a_document_cannot_be_opened_for_writing_or_truncated(self):
        for path, data in (self.there_before(), self.copied_in()):
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
                self.refused(errno.EACCES, os.open, path, flags)
            self.refused(errno.EACCES, os.truncate, path, 0)
            self.assertEqual(data, read(path))
        self.assertEqual(2, len(self.sandbox.documents(self.session)))

    def test_a_document_cannot_be_renamed_within_its_session(self):
        path, data = self.there_before()
        self.refused(errno.EPERM, os.rename, path, os.path.join(self.dir, "other.pdf"))
        path2, _ = self.copied_in()
        self.refused(errno.EPERM, os.rename, path2, os.path.join(self.dir, "another.pdf"))
        self.assertEqual(["new.pdf", "old.pdf"], sorted(os.listdir(self.dir)))

    def test_a_folder_cannot_be_made_inside_a_session(self):
        self.refused(errno.EPERM, os.mkdir, os.path.join(self.dir, "sub"))

    def test_a_file_cannot_be_made_at_the_root(self):
        self.refused(errno.EPERM, os.open, os.path.join(self.mount.path, "a.pdf"), os.O_WRONLY | os.O_CREAT)
        self.refused(errno.EPERM, os.mkdir, os.path.join(self.mount.path, ".Trash-0"))
        self.refused(errno.EPERM, os.mkdir, os.path.join(self.mount.path, "No template is given"))

    def test_an_unaccepted_suffix_is_refused_at_create_and_at_rename_and_named_in_refused_txt(self):
        before = self.sandbox.last_request()
        for name in ("notes.txt", "table.xlsx", "no suffix"):
            self.refused(errno.EOPNOTSUPP, os.open, os.path.join(self.dir, name), os.O_WRONLY | os.O_CREAT)
        scratch = write(os.path.join(self.dir, "table.part"), b"bytes")
        self.refused(errno.EOPNOTSUPP, os.rename, scratch, os.path.join(self.dir, "table.csv"))
        self.assertEqual(b"bytes", read(scratch))
        os.unlink(scratch)
        self.assertEqual([], os.listdir(self.dir))
        text = read(os.path.join(self.mount.path, "Not uploaded", "refused.txt")).decode()
        for name in ("notes.txt", "table.xlsx", "table.csv"):
            self.assertIn(name, text)
        self.assertEqual([], self.sandbox.writes(before))

    def test_every_accepted_suffix_is_taken_in_any_letter_case(self):
        for name in ("a.PDF", "b.docx", "c.Doc", "d.png", "e.jpg", "f.JPEG", "g.tiff", "h.tif", "i.pptx", ".invoice.pdf", "sedan.pdf"):
            os.close(os.open(os.path.join(self.dir, name), os.O_WRONLY | os.O_CREAT))
            os.unlink(os.path.join(self.dir, name))
        self.assertEqual([], os.listdir(self.dir))

    def test_chmod_chown_and_utimens_succeed_and_change_nothing_of_a_document(self):
        path, data = self.there_before()
        before = os.stat(path)
        for one in (path, self.dir):
            os.chmod(one, 0o755)
            os.chown(one, 1234, 1234)
            os.utime(one, (1, 1))
        after = os.stat(path)
        self.assertEqual((before.st_mode, before.st_uid, before.st_mtime_ns), (after.st_mode, after.st_uid, after.st_mtime_ns))

    def test_a_shared_map_of_a_file_being_written_is_refused_and_not_lost(self):
        fd = os.open(os.path.join(self.dir, "mapped.part"), os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 4096)
        with self.assertRaises(OSError):
            mmap.mmap(fd, 4096)
        os.close(fd)

    def test_links_and_special_files_are_refused(self):
        path, _ = self.there_before()
        for call, arguments in ((os.symlink, ("x", os.path.join(self.dir, "link.pdf"))),
                                (os.mkfifo, (os.path.join(self.dir, "fifo.pdf"),))):
            with self.assertRaises(OSError) as caught:
                call(*arguments)
            self.assertIn(caught.exception.errno, (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP))
        self.assertEqual(["old.pdf"], os.listdir(self.dir))

    def test_a_name_too_long_or_unsafe_is_refused(self):
        self.refused(errno.ENAMETOOLONG, os.open, os.path.join(self.dir, "x" * 252 + ".pdf"), os.O_WRONLY | os.O_CREAT)
        self.refused(errno.EINVAL, os.open, os.path.join(self.dir, "two\nlines.pdf"), os.O_WRONLY | os.O_CREAT)
        self.refused(errno.EINVAL, os.open, os.fsencode(self.dir) + b"/\xff\xfe.pdf", os.O_WRONLY | os.O_CREAT)

    def test_a_rename_of_a_scratch_file_over_other_bytes_is_EEXIST_and_over_equal_bytes_costs_nothing(self):
        path, data = self.there_before()
        scratch = write(os.path.join(self.dir, ".old.pdf.aB3xYz"), b"other bytes")
        self.refused(errno.EEXIST, os.rename, scratch, path)
        self.assertEqual(b"other bytes", read(scratch))
        os.unlink(scratch)
        before = self.sandbox.last_request()
        write(scratch, data)
        os.rename(scratch, path)
        self.assertEqual(["old.pdf"], os.listdir(self.dir))
        self.assertEqual([], self.sandbox.writes(before))
        self.assertEqual(data, read(path))


class Removing(Rules):
    """remove=recent, the default."""

    def test_what_was_there_before_cannot_be_removed_and_rm_rf_destroys_nothing(self):
        path, data = self.there_before()
        self.refused(errno.EPERM, os.unlink, path)
        ids = self.ids_there()
        done = run(["rm", "-rf", self.dir])
        self.assertNotEqual(0, done.status)
        self.assertEqual(ids, self.ids_there())
        self.assertEqual(data, read(path))

    def test_rm_rf_of_the_whole_mount_destroys_nothing_that_was_there_before(self):
        self.there_before()
        before = self.ids_there()
        folder = self.new_folder()
        other = self.new_mount(self.sandbox, folder, [self.session])
        other.start().names_seen(1)
        inside = os.path.join(other.path, other.folders()[0])
        wait_for(lambda: os.listdir(inside), 10, "it is listed")
        run(["rm", "-rf", other.path])
        self.assertEqual(before, self.ids_there())
        self.assertEqual([], [r for r in self.sandbox.requests() if r["method"] == "DELETE" and r["path"].endswith(self.session)])

    def test_what_this_mount_brought_just_now_can_be_removed_and_is_detached_alone(self):
        path, _ = self.copied_in()
        count = self.sandbox.control("GET", "/state")["document_count"]
        os.unlink(path)
        self.assertEqual([], self.ids_there())
        self.assertEqual([], os.listdir(self.dir))
        self.assertEqual(count, self.sandbox.control("GET", "/state")["document_count"], "the workspace keeps it")

    def test_removing_one_of_two_names_removes_the_name_and_the_last_one_detaches(self):
        first, data = self.copied_in("first.pdf")
        second = os.path.join(self.dir, "second.pdf")
        self.assertEqual(0, run(["cp", os.path.join(self.sources, "first.pdf"), second]).status)
        os.unlink(first)
        self.assertEqual([sha256_of(data)], self.sandbox.hashes(self.session))
        self.assertEqual(["second.pdf"], os.listdir(self.dir))
        os.unlink(second)
        self.assertEqual([], self.ids_there())

    def test_a_document_that_was_there_before_an_upload_of_equal_bytes_is_never_detached_by_it(self):
        path, data = self.there_before()
        source = write(os.path.join(self.sources, "copy.pdf"), data)
        copy = os.path.join(self.dir, "copy.pdf")
        self.assertEqual(0, run(["cp", source, copy]).status)
        ids = self.ids_there()
        try:
            os.unlink(copy)
        except PermissionError:
            pass
        self.assertEqual(ids, self.ids_there())
        self.assertIn("old.pdf", os.listdir(self.dir))

    def test_an_upload_under_way_can_be_removed_which_cancels_it(self):
        self.expects(r".")
        self.sandbox.fault(origin="storage", method="PUT", action="stall", times=0)
        self.addCleanup(self.sandbox.clear_faults)
        source = self.paper()
        path = os.path.join(self.dir, "invoice.pdf")
        cp = begin(["cp", source, path])
        self.kept.append(cp)
        wait_for(lambda: os.path.exists(path) and attribute(path, "state") == "uploading", 10, "uploading")
        os.unlink(path)
        self.assertEqual([], os.listdir(self.dir))
        self.sandbox.clear_faults()
        finish(cp, 20)
        time.sleep(1)
        self.assertEqual([], self.ids_there())

    def test_rmdir_takes_a_session_off_this_mount_and_changes_nothing_at_the_service(self):
        self.there_before()
        before = self.sandbox.last_request()
        os.rmdir(self.dir)
        self.assertFalse(os.path.exists(self.dir))
        self.assertEqual(1, len(self.ids_there()))
        self.assertEqual([], self.sandbox.writes(before))
        self.assertEqual(0, self.mount.command("add", "test", self.session).status)
        wait_for(lambda: os.path.exists(self.dir), 10, "it is back")


class RemovingNothing(Rules):
    options = {"remove": "no"}
    extra_sessions = ("the other",)

    def test_remove_no_keeps_even_what_was_just_brought(self):
        path, data = self.copied_in()
        self.refused(errno.EPERM, os.unlink, path)
        self.refused(errno.EPERM, os.rename, path, os.path.join(self.folder_of("the other"), "new.pdf"))
        self.assertEqual([sha256_of(data)], self.sandbox.hashes(self.session))


class RemovingAnything(Rules):
    options = {"remove": "yes"}
    extra_sessions = ("the other",)

    def test_remove_yes_detaches_and_the_service_keeps_the_document(self):
        path, _ = self.there_before()
        count = self.sandbox.control("GET", "/state")["document_count"]
        os.unlink(path)
        self.assertEqual([], self.ids_there())
        self.assertEqual(count, self.sandbox.control("GET", "/state")["document_count"])

    def test_mv_into_another_session_attaches_there_and_detaches_here(self):
        path, data = self.there_before()
        before = self.sandbox.last_request()
        target = os.path.join(self.folder_of("the other"), "old.pdf")
        done = run(["mv", path, target])
        self.assertEqual(0, done.status, done)
        self.assertEqual([], self.ids_there())
        self.assertIn(sha256_of(data), self.sandbox.hashes(self.ids["the other"]))
        self.assertEqual(["attach", "detach"], [r["route"] for r in self.sandbox.writes(before)])
        self.assertEqual(data, read(target))
        self.assertEqual([], os.listdir(self.dir))

    def test_a_scratch_file_renamed_over_a_document_replaces_it_the_new_one_first(self):
        path, old = self.there_before()
        new = paper_bytes()
        scratch = write(os.path.join(self.dir, ".old.pdf.aB3xYz"), new)
        before = self.sandbox.last_request()
        os.rename(scratch, path)
        wait_for(lambda: self.sandbox.hashes(self.session) == [sha256_of(new)], 15, "replaced")
        routes = [r["route"] for r in self.sandbox.writes(before)]
        self.assertLess(routes.index("upload"), routes.index("detach"))
        self.assertEqual(["old.pdf"], os.listdir(self.dir))
        self.assertEqual(new, read(path))


class Sessions(Rules):
    options = {"template": "Supplier bills"}
    extra_sessions = ("the other",)

    def test_mkdir_makes_a_session_that_takes_documents(self):
        folder = os.path.join(self.mount.path, "New in April")
        os.mkdir(folder)
        session = attribute(folder, "id")
        found = [s for s in self.sandbox.control("GET", "/state")["sessions"] if s["id"] == session]
        self.assertEqual(["New in April"], [s["name"] for s in found])
        path, data = self.copied_in("bill.pdf", folder)
        self.assert_one_document("bill.pdf", data, session, folder)
        self.refused(errno.EEXIST, os.mkdir, folder)
        for name in (".hidden", "scratch.tmp", ".Trash-0"):
            self.refused(errno.EPERM, os.mkdir, os.path.join(self.mount.path, name))

    def test_cp_r_of_a_folder_makes_a_session_of_its_documents(self):
        tree = os.path.join(self.sources, "May bills")
        os.mkdir(tree)
        data = [read(self.paper("bill %d.pdf" % i)) for i in range(3)]
        for i in range(3):
            shutil.move(os.path.join(self.sources, "bill %d.pdf" % i), tree)
        done = run(["cp", "-r", tree, self.mount.path])
        self.assertEqual(0, done.status, done)
        folder = os.path.join(self.mount.path, "May bills")
        self.assertEqual(sorted(map(sha256_of, data)), self.sandbox.hashes(attribute(folder, "id")))

    def test_ln_into_another_session_attaches_the_same_document_without_its_bytes(self):
        path, data = self.there_before()
        before = self.sandbox.last_request()
        target = os.path.join(self.folder_of("the other"), "linked.pdf")
        done = run(["ln", path, target])
        self.assertEqual(0, done.status, done)
        self.assertEqual(["attach"], [r["route"] for r in self.sandbox.requests(before) if r["method"] != "GET"])
        self.assertEqual([], [r for r in self.sandbox.requests(before) if r["origin"] == "storage"])
        self.assertEqual(attribute(path, "id"), attribute(target, "id"))
        self.assertNotEqual(os.stat(path).st_ino, os.stat(target).st_ino)
        self.assertEqual(1, os.stat(target).st_nlink)
        self.assertEqual(data, read(target))

    def test_cp_between_sessions_uploads_nothing(self):
        path, data = self.there_before()
        before = self.sandbox.last_request()
        target = os.path.join(self.folder_of("the other"), "copied.pdf")
        done = run(["cp", path, target])
        self.assertEqual(0, done.status, done)
        self.assertEqual(["attach"], [r["route"] for r in self.sandbox.writes(before)])
        self.assertIn(sha256_of(data), self.sandbox.hashes(self.ids["the other"]))
        self.assertEqual(data, read(target))

    @needs("rsync")
    def test_rsync_between_sessions_uploads_nothing(self):
        path, data = self.there_before("synced.pdf")
        before = self.sandbox.last_request()
        done = run(["rsync", "-a", path, self.folder_of("the other") + "/"])
        self.assertEqual(0, done.status, done)
        self.assertEqual([], [r for r in self.sandbox.writes(before) if r["origin"] == "storage"])
        self.assertIn(sha256_of(data), self.sandbox.hashes(self.ids["the other"]))

    def test_copy_file_range_of_a_whole_document_fetches_no_byte(self):
        path, data = self.there_before("ranged.pdf")
        before = self.sandbox.last_request()
        text = ("import os, sys\ni = os.open(sys.argv[1], os.O_RDONLY)\no = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT, 0o644)\n"
                "n = os.fstat(i).st_size\nat = 0\nwhile at < n:\n  k = os.copy_file_range(i, o, n - at)\n  assert k > 0\n  at += k\n"
                "os.close(o)")
        target = os.path.join(self.folder_of("the other"), "ranged.pdf")
        done = run([PYTHON, "-c", text, path, target])
        self.assertEqual(0, done.status, done)
        self.assertEqual([], [r for r in self.sandbox.requests(before) if r["origin"] == "storage"])
        self.assertIn(sha256_of(data), self.sandbox.hashes(self.ids["the other"]))
        self.assertEqual(data, read(target))

    def test_add_and_forget_work_while_mounted(self):
        session = self.sandbox.session("Late arrival")
        folder = os.path.join(self.mount.path, "Late arrival")
        self.assertFalse(os.path.exists(folder))
        done = self.mount.command("add", "test", "https://dashboard.example/sessions/%s/documents?tab=1" % session)
        self.assertEqual(0, done.status, done)
        wait_for(lambda: os.path.isdir(folder), 10, "it shows")
        self.assertIn(session, read(os.path.join(self.mount.path, ".sessionfs", "sessions")).decode())
        done = self.mount.command("forget", "test", session)
        self.assertEqual(0, done.status, done)
        wait_for(lambda: not os.path.exists(folder), 10, "it has left")

    def test_an_id_of_no_session_is_no_entry(self):
        self.refused(errno.ENOENT, os.stat, os.path.join(self.mount.path, "00000000-0000-4000-8000-000000000000"))
        self.assertNotEqual(0, self.mount.command("add", "test", "00000000-0000-4000-8000-000000000000").status)

    def test_a_session_the_service_renames_still_answers_to_its_old_name(self):
        self.there_before()
        self.sandbox.control("POST", "/rename", {"session": self.session, "name": "Renamed by the boss"})
        self.assertEqual(0, self.mount.command("refresh", self.mount.path).status)
        wait_for(lambda: "Renamed by the boss" in os.listdir(self.mount.path), 15, "the new name")
        self.assertNotIn(os.path.basename(self.dir), os.listdir(self.mount.path))
        wait_for(lambda: os.path.isdir(self.dir), 5, "the old name is written down")
        self.assertEqual(["old.pdf"], os.listdir(self.dir))


class Failed(Rules):
    """What a final refusal leaves behind, and the two ways out."""
    options = {"naming": "session"}

    def refuse_one(self, name="invoice.pdf"):
        self.expects(r".")
        self.sandbox.fault(route="upload", status=422, times=2, body={
            "message": "The keys.0 is not readable.", "errors": {"keys": ["The keys.0 is not readable."]}})
        self.addCleanup(self.sandbox.clear_faults)
        source = self.paper(name)
        done = run(["cp", source, self.dir])
        self.assertEqual(1, done.status)
        self.assertIn("Invalid argument", done.err)
        self.sandbox.clear_faults()
        self.assertEqual([], os.listdir(self.dir))
        return source, os.path.join(self.mount.path, "Not uploaded", os.path.basename(self.dir), name)

    def test_a_refused_file_stands_under_not_uploaded_with_its_reason(self):
        source, failed = self.refuse_one()
        self.assertEqual(read(source), read(failed))
        self.assertEqual("failed", attribute(failed, "state"))
        self.assertIn("The keys.0 is not readable.", attribute(failed, "error"))
        self.assertIn("The keys.0 is not readable.", read(failed + ".why.txt").decode())
        self.assertIn("Not uploaded", os.listdir(self.mount.path))
        self.assertNotEqual(0, self.mount.command("status", self.mount.path).status)
        os.unlink(failed)
        self.assertFalse(os.path.exists(failed))
        self.assertFalse(os.path.exists(failed + ".why.txt"))

    def test_moving_a_refused_file_back_tries_again(self):
        source, failed = self.refuse_one()
        done = run(["mv", failed, self.dir])
        self.assertEqual(0, done.status, done)
        wait_for(lambda: self.sandbox.hashes(self.session) == [sha256_of(source)], 15, "it is there")
        self.assertFalse(os.path.exists(failed))
        self.assertEqual(["invoice.pdf"], os.listdir(self.dir))

    def test_retry_tries_again_and_discard_gives_up(self):
        source, failed = self.refuse_one("again.pdf")
        done = self.mount.command("retry", failed)
        self.assertEqual(0, done.status, done)
        wait_for(lambda: self.sandbox.hashes(self.session) == [sha256_of(source)], 15, "it is there")
        source, failed = self.refuse_one_more()
        done = self.mount.command("discard", failed)
        self.assertEqual(0, done.status, done)
        self.assertFalse(os.path.exists(failed))
        self.assertEqual(1, len(self.sandbox.documents(self.session)))

    def test_what_was_discarded_where_failures_are_shown_can_be_copied_in_again_at_once(self):
        for discard in (os.unlink, lambda failed: self.mount.command("discard", failed)):
            source, failed = self.refuse_one("bill.pdf")
            discard(failed)
            done = run(["cp", source, self.dir])
            self.assertEqual(0, done.status, done)
            self.assert_one_document("bill.pdf", read(source))
            os.unlink(os.path.join(self.dir, "bill.pdf"))

    def refuse_one_more(self):
        self.sandbox.fault(route="upload", status=422, times=2, body={"message": "no", "errors": {"keys": ["no"]}})
        source = self.paper("more.pdf")
        self.assertEqual(1, run(["cp", source, self.dir]).status)
        self.sandbox.clear_faults()
        return source, os.path.join(self.mount.path, "Not uploaded", os.path.basename(self.dir), "more.pdf")

    def test_each_refusal_has_its_errno_and_names_its_reason(self):
        self.expects(r".")
        self.addCleanup(self.sandbox.clear_faults)
        for status, words, number in ((403, "missing ability", "Permission denied"), (413, "too big", "File too large"),
                                      (400, "broken", "Invalid argument")):
            self.sandbox.fault(route="upload", status=status, times=0, body={"message": words})
            done = run(["cp", self.paper("e%d.pdf" % status), self.dir])
            self.assertEqual(1, done.status)
            self.assertIn(number, done.err)
            failed = os.path.join(self.mount.path, "Not uploaded", os.path.basename(self.dir), "e%d.pdf" % status)
            self.assertIn(words, attribute(failed, "error"))
            self.sandbox.clear_faults()
        self.assertEqual([], self.ids_there())


@unittest.skipUnless(shutil.which("mount"), "no mount")
class FullDisk(MountCase):
    """The state folder lies on a disk of a few megabytes."""

    def setUp(self):
        super().setUp()
        self.expects(r"disk|full|written|space|queue")
        folder = self.new_folder()
        self.sources = self.new_folder()
        self.sandbox = self.new_sandbox(folder)
        self.session = self.sandbox.session("Q1")
        self.mount = self.new_mount(self.sandbox, folder, [self.session], state_dir=os.path.join(self.small_disk(), "state"))
        self.mount.start().names_seen(1)
        self.dir = os.path.join(self.mount.path, "Q1")
        os.listdir(self.dir)

    def small_disk(self):
        disk = self.new_folder()
        done = run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", disk])
        if done.status != 0:
            self.skipTest("no tmpfs can be mounted: " + done.err)
        self.addCleanup(run, ["umount", "-l", disk])  # after tearDown() has ended the mount that lives there
        return disk

    def tearDown(self):
        self.mount.stop()
        for folder in [one for one in self.kept if isinstance(one, str)]:
            run(["umount", "-l", folder])
        super().tearDown()

    def test_half_a_file_is_told_and_kept_apart_and_never_sent(self):
        before = self.sandbox.last_request()
        source = write(os.path.join(self.sources, "big.pdf"), paper_bytes(size=12_000_000))
        done = run(["cp", source, self.dir])
        self.assertEqual(1, done.status, done)
        self.assertIn("No space left", done.err)
        self.assertEqual([], os.listdir(self.dir))
        kept = os.path.join(self.mount.path, "Not uploaded", "Q1", "big.pdf")
        self.assertEqual("failed", attribute(kept, "state"))
        self.assertIn("not the whole file", read(kept + ".why.txt").decode())
        self.assertNotEqual(0, self.mount.command("retry", kept).status)
        with self.assertRaises(OSError):
            os.rename(kept, os.path.join(self.dir, "big.pdf"))
        # A link may have been asked for while the bytes came.
        self.assertEqual([], [r for r in self.sandbox.writes(before) if r["route"] != "sign"])
        os.unlink(kept)
        small = write(os.path.join(self.sources, "small.pdf"), paper_bytes())
        wait_for(lambda: run(["cp", small, self.dir]).status == 0, 10, "there is room again")
        self.assertEqual([sha256_of(small)], self.sandbox.hashes(self.session))

    def test_half_a_file_stays_half_a_file_after_a_remount(self):
        filler = write(os.path.join(self.dir, "filler.part"), b"x" * 2_000_000)
        fd = os.open(os.path.join(self.dir, "half.pdf"), os.O_WRONLY | os.O_CREAT)
        with self.assertRaises(OSError):
            while True:
                os.write(fd, paper_bytes(size=1_000_000))
        os.unlink(filler)
        self.refused(errno.ENOSPC, os.close, fd)
        kept = os.path.join(self.mount.path, "Not uploaded", "Q1", "half.pdf")
        half = read(kept)
        time.sleep(0.5)
        self.mount.stop()
        self.mount.start().names_seen(1)
        self.assertEqual(half, read(kept))
        self.assertNotEqual(0, self.mount.command("retry", kept).status)
        time.sleep(0.5)
        self.assertEqual([], self.sandbox.documents(self.session))

    def test_what_a_second_program_writes_after_the_first_one_failed_is_not_the_file(self):
        filler = write(os.path.join(self.dir, "filler.part"), b"x" * 4_000_000)
        first, second = (write(os.path.join(self.sources, name), paper_bytes(size=3_000_000)) for name in ("first", "second"))
        done = run("(dd if='%s' bs=4M status=none; rm '%s'; sleep 0.3; cat '%s'; :) > '%s'" % (
            first, filler, second, os.path.join(self.dir, "headless.pdf")))
        self.assertEqual(0, done.status, done)
        self.assertIn("No space left", done.err)
        time.sleep(0.5)
        self.assertEqual([], self.sandbox.documents(self.session))
        self.assertIn("headless.pdf", os.listdir(os.path.join(self.mount.path, "Not uploaded", "Q1")))

    def test_a_program_that_makes_room_and_writes_again_loses_nothing(self):
        data = paper_bytes(size=3_000_000)
        filler = write(os.path.join(self.dir, "filler.part"), b"x" * 4_000_000)
        fd = os.open(os.path.join(self.dir, "patient.pdf"), os.O_WRONLY | os.O_CREAT)
        at = failures = 0
        while at < len(data):
            try:
                at += os.write(fd, data[at:at + 100_000])
            except OSError as e:
                self.assertEqual(errno.ENOSPC, e.errno)
                failures += 1
                self.assertLess(failures, 200)
                if os.path.exists(filler):
                    os.unlink(filler)
                time.sleep(0.02)
        self.assertGreater(failures, 0)
        os.close(fd)
        self.assertEqual([sha256_of(data)], self.sandbox.hashes(self.session))
        self.assertFalse(os.path.exists(os.path.join(self.mount.path, "Not uploaded")))


class Versions(Rules):
    """What closes, removals and refusals that cross each other leave."""
    options = {"ttl": "1s", "close_timeout": "2s", "naming": "session"}
    extra_sessions = ("the other",)

    def all_at_once(self, what, count):
        failed = []

        def one(i):
            try:
                what(i)
            except OSError as e:
                failed.append(e)
        threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual([], failed)

    def test_a_folder_first_listed_in_an_outage_is_whole_once_the_service_is_back(self):
        self.expects(r".")
        for i in range(3):
            self.sandbox.document(self.session, "d%d.pdf" % i, base64=base64.b64encode(paper_bytes()).decode())
        self.sandbox.control("POST", "/down", {"how": "refuse"})
        for _ in range(2):
            done = run(["ls", self.dir])
            self.assertNotEqual(0, done.status, done)
        self.sandbox.control("POST", "/up")
        time.sleep(6)
        done = run(["ls", self.dir])
        self.assertEqual((0, 3), (done.status, len(done.out.split())), done)

    def test_documents_withheld_by_a_403_are_shown_again(self):
        self.expects(r".")
        for i in range(3):
            self.sandbox.document(self.session, "d%d.pdf" % i, base64=base64.b64encode(paper_bytes()).decode())
        self.assertEqual(3, len(os.listdir(self.dir)))
        self.sandbox.fault(path="/sessions/" + self.session, status=403, times=0, body={"message": "no"})
        time.sleep(1.2)
        done = run(["ls", self.dir])
        self.assertNotEqual(0, done.status, done)
        self.sandbox.clear_faults()
        time.sleep(6)
        wait_for(lambda: len(os.listdir(self.dir)) == 3, 10, "shown again")

    def test_a_failing_rename_over_a_waiting_file_keeps_both(self):
        self.expects(r".")
        os.listdir(self.dir)
        self.sandbox.fault(route="sign", status=503, times=0)
        first = self.paper("a.pdf")
        done = run(["cp", first, self.dir])
        self.assertEqual(1, done.status)
        self.assertEqual(["a.pdf"], os.listdir(self.dir))
        second = paper_bytes()
        scratch = write(os.path.join(self.dir, ".a.pdf.Xk3dF9"), second)
        with self.assertRaises(OSError):
            os.rename(scratch, os.path.join(self.dir, "a.pdf"))
        self.assertEqual([".a.pdf.Xk3dF9", "a.pdf"], sorted(os.listdir(self.dir)))
        self.assertEqual(read(first), read(os.path.join(self.dir, "a.pdf")))
        self.assertEqual(second, read(scratch))
        os.unlink(scratch)
        self.sandbox.clear_faults()
        self.mount.command("retry", "--all")
        wait_for(lambda: self.sandbox.hashes(self.session) == [sha256_of(first)], 20, "the first went on")

    def test_what_was_removed_and_brought_again_can_be_removed_again(self):
        source = self.paper("a.pdf")
        path = os.path.join(self.dir, "a.pdf")
        os.listdir(self.dir)
        for _ in range(3):
            self.assertEqual(0, run(["cp", source, path]).status)
            time.sleep(1.3)
            os.listdir(self.dir)
            os.unlink(path)
            self.assertEqual([], self.sandbox.documents(self.session))

    def test_a_copied_range_is_whole_while_its_writer_is_open(self):
        data = paper_bytes()
        self.sandbox.document(self.session, "r.pdf", base64=base64.b64encode(data).decode())
        time.sleep(1.2)
        wait_for(lambda: os.listdir(self.dir) == ["r.pdf"], 10, "listed")
        target = os.path.join(self.folder_of("the other"), "r.pdf")
        i = os.open(os.path.join(self.dir, "r.pdf"), os.O_RDONLY)
        o = os.open(target, os.O_WRONLY | os.O_CREAT, 0o644)
        self.assertEqual(len(data), os.copy_file_range(i, o, len(data)))
        os.close(os.dup(o))  # sends it
        self.assertEqual(len(data), os.stat(target).st_size)
        self.assertEqual(data, read(target))
        os.close(o)
        os.close(i)
        self.assertEqual(data, read(target))

    def test_files_removed_right_after_their_close_leave_nothing(self):
        os.listdir(self.dir)

        def bring_and_remove(n):
            for i in range(8):
                os.unlink(write(os.path.join(self.dir, "%d-%d.pdf" % (n, i)), paper_bytes()))
        self.all_at_once(bring_and_remove, 6)
        self.assertEqual([], os.listdir(self.dir))
        wait_for(lambda: self.sandbox.documents(self.session) == [], 10, "nothing is left")
        os.rmdir(self.dir)

    def test_two_writers_closing_at_once_end_as_one_document_with_the_bytes_of_both(self):
        os.listdir(self.dir)
        expected = []
        for n in range(20):
            path = os.path.join(self.dir, "two %d.pdf" % n)
            data = paper_bytes(size=400000)
            handles = [os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2)]

            def fill(i, data=data, handles=handles, half=len(data) // 2):
                time.sleep(i * 0.001 * (n % 7))
                os.pwrite(handles[i], data[i * half:(i + 1) * half], i * half)
                os.close(handles[i])
            self.all_at_once(fill, 2)
            expected.append(sha256_of(data))
            self.assertEqual(data, read(path))
        wait_for(lambda: self.sandbox.hashes(self.session) == sorted(expected), 20, "twenty whole documents")

    def test_a_writer_beside_a_closing_one_is_not_refused(self):
        os.listdir(self.dir)
        path = os.path.join(self.dir, "beside.pdf")
        a = os.open(path, os.O_RDWR | os.O_CREAT)
        b = os.open(path, os.O_RDWR)
        data = bytearray(paper_bytes(size=200000))
        os.write(a, data)
        t = threading.Thread(target=os.close, args=(a,))
        t.start()
        for i in range(200):
            data[i * 10:i * 10 + 4] = b"WXYZ"
            os.pwrite(b, b"WXYZ", i * 10)
        t.join()
        os.close(b)
        wait_for(lambda: self.sandbox.hashes(self.session) == [sha256_of(bytes(data))], 20, "the last version alone")
        self.assertEqual(["beside.pdf"], os.listdir(self.dir))

    def test_a_truncate_by_name_of_a_waiting_file_is_what_is_sent(self):
        self.expects(r".")
        os.listdir(self.dir)
        self.sandbox.fault(route="sign", status=503, times=0)
        source = self.paper("t.pdf")
        self.assertEqual(1, run(["cp", source, self.dir]).status)
        path = os.path.join(self.dir, "t.pdf")
        os.truncate(path, 100)
        self.sandbox.clear_faults()
        self.mount.command("retry", "--all")
        wait_for(lambda: self.sandbox.hashes(self.session) == [sha256_of(read(source)[:100])], 30, "the shorter one")


class Ownership(MountCase):
    def test_uid_gid_and_umask_are_shown_and_obeyed(self):
        folder = self.new_folder()
        os.chmod(folder, 0o755)
        sandbox = self.new_sandbox(folder)
        session = sandbox.session("Q1")
        sandbox.document(session, "a.pdf", text="text")
        mount = self.new_mount(sandbox, folder, [session], uid="1234", gid="2345", umask="027", allow_other="yes")
        mount.start().names_seen(1)
        inside = os.path.join(mount.path, "Q1")
        wait_for(lambda: os.listdir(inside) == ["a.pdf"], 10, "listed")
        info, dir_info = os.stat(os.path.join(inside, "a.pdf")), os.stat(inside)
        self.assertEqual((1234, 2345, 0o440), (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)))
        self.assertEqual((1234, 2345, 0o750), (dir_info.st_uid, dir_info.st_gid, stat.S_IMODE(dir_info.st_mode)))
        done = run(["setpriv", "--reuid", "1234", "--regid", "2345", "--clear-groups", "cat", os.path.join(inside, "a.pdf")])
        self.assertEqual("text", done.out, done)
        done = run(["setpriv", "--reuid", "4321", "--regid", "4321", "--clear-groups", "cat", os.path.join(inside, "a.pdf")])
        self.assertNotEqual(0, done.status, "umask=027 lets others read")

    def test_a_mount_made_with_ro_refuses_every_change(self):
        folder = self.new_folder()
        sandbox = self.new_sandbox(folder)
        session = sandbox.session("Q1")
        sandbox.document(session, "a.pdf", text="text")
        mount = self.new_mount(sandbox, folder, [session], template="Supplier bills", remove="yes")
        mount.start("-o", "ro").names_seen(1)
        inside = os.path.join(mount.path, "Q1")
        wait_for(lambda: os.listdir(inside) == ["a.pdf"], 10, "listed")
        before = sandbox.last_request()
        self.refused(errno.EROFS, os.open, os.path.join(inside, "b.pdf"), os.O_WRONLY | os.O_CREAT)
        self.refused(errno.EROFS, os.unlink, os.path.join(inside, "a.pdf"))
        self.refused(errno.EROFS, os.mkdir, os.path.join(mount.path, "New"))
        self.assertEqual("text", read(os.path.join(inside, "a.pdf")).decode())
        self.assertEqual([], sandbox.writes(before))

    def test_without_allow_other_another_user_sees_nothing(self):
        folder = self.new_folder()
        os.chmod(folder, 0o755)
        sandbox = self.new_sandbox(folder)
        mount = self.new_mount(sandbox, folder, [sandbox.session("Q1")]).start().names_seen(1)
        self.assertEqual(0o700, stat.S_IMODE(os.stat(os.path.join(mount.path, "Q1")).st_mode))
        done = run(["setpriv", "--reuid", "4321", "--regid", "4321", "--clear-groups", "ls", mount.path], env=environment())
        self.assertNotEqual(0, done.status)


if __name__ == "__main__":
    main()
