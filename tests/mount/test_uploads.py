"""Uploads as such: the link for a large file that is asked for while it is written, what an unmount waits for, what a mount knows of
an earlier one's files."""

import contextlib
import errno
import os
import time
import unittest

from harness import SLACK, MountCase, SharedMount, attribute, begin, finish, main, read, run, sha256_of, wait_for, write

MIB = 1 << 20


def steps(sandbox, since):
    return [r["route"] for r in sandbox.requests(since) if r["route"] in ("sign", "put", "upload")]


class LinksAhead(SharedMount):
    options = {"naming": "session"}
    extra_sessions = ("elsewhere",)

    def since(self):
        return self.sandbox.last_request()

    def test_the_link_for_a_large_file_is_asked_for_before_its_last_byte_is_written(self):
        since, data = self.since(), os.urandom(MIB)
        with open(os.path.join(self.dir, "large.pdf"), "wb", buffering=0) as f:
            for _ in range(6):
                f.write(data)
            wait_for(lambda: steps(self.sandbox, since) == ["sign"], 10, "the link is asked for")
            for _ in range(44):
                f.write(data)
        self.assertEqual(["sign", "put", "upload"], steps(self.sandbox, since))
        self.assert_one_document("large.pdf", data * 50)

    def test_a_large_copy_costs_three_requests(self):
        source, since = self.paper(size=50 * MIB), self.since()
        self.assertEqual(0, run(["cp", source, self.dir]).status)
        self.assertEqual(["sign", "put", "upload"], steps(self.sandbox, since))
        put = [r for r in self.sandbox.requests(since) if r["route"] == "put"]
        self.assertEqual(50 * MIB, put[0]["bytes"])

    def test_a_scratch_name_asks_for_nothing_before_it_is_renamed(self):
        since, part = self.since(), os.path.join(self.dir, "part.pdf.part")
        write(part, os.urandom(6 * MIB))
        self.assertEqual([], steps(self.sandbox, since))
        os.rename(part, os.path.join(self.dir, "part.pdf"))
        self.assertEqual(["sign", "put", "upload"], steps(self.sandbox, since))

    def test_a_link_that_is_refused_ahead_is_asked_for_again(self):
        since = self.since()
        self.sandbox.fault(route="sign", status=500)
        with open(os.path.join(self.dir, "refused.pdf"), "wb", buffering=0) as f:
            f.write(os.urandom(5 * MIB))
            wait_for(lambda: [r for r in self.sandbox.requests(since) if r["route"] == "sign" and r["done"]], 10, "asked")
        self.assertEqual(["sign", "sign", "put", "upload"], steps(self.sandbox, since))

    def test_a_file_that_the_workspace_seems_to_have_already_asks_for_nothing(self):
        data = os.urandom(6 * MIB)
        write(os.path.join(self.dir, "known.pdf"), data)
        since, elsewhere = self.since(), self.folder_of("elsewhere")
        with open(os.path.join(elsewhere, "known.pdf"), "wb", buffering=0) as f:
            for at in range(0, len(data), MIB):
                f.write(data[at:at + MIB])
        self.assertEqual([], steps(self.sandbox, since))  # attached by its id
        self.assertEqual(["known.pdf"], os.listdir(elsewhere))

    def test_a_large_file_that_is_removed_while_it_is_written_leaves_nothing(self):
        since, path = self.since(), os.path.join(self.dir, "removed.pdf")
        with open(path, "wb", buffering=0) as f:
            f.write(os.urandom(5 * MIB))
            wait_for(lambda: steps(self.sandbox, since) == ["sign"], 10, "the link is asked for")
            os.unlink(path)
        self.assertEqual(["sign"], steps(self.sandbox, since))
        self.assertEqual([], self.sandbox.hashes(self.session))


class Background(SharedMount):
    options = {"naming": "session", "upload": "background"}

    def test_what_is_removed_while_its_last_step_is_under_way_leaves_nothing_behind(self):
        for n in range(5):
            since, path = self.sandbox.last_request(), os.path.join(self.dir, "scan.pdf")
            self.sandbox.fault(route="upload", action="stall", ms=300, when="after")
            write(path, os.urandom(5000))
            wait_for(lambda: "upload" in steps(self.sandbox, since), 10, "its last step is under way")
            os.unlink(path)
            wait_for(lambda: self.mount.status()["waiting"] == 0, 20, "nothing waits")
            wait_for(lambda: not self.sandbox.hashes(self.session), 20, "it is detached")
        write(path, data := os.urandom(5000))
        wait_for(lambda: self.mount.status()["waiting"] == 0, 20, "nothing waits")
        self.assert_one_document("scan.pdf", data)


class Crossing(SharedMount):
    options = {"naming": "session"}

    def test_equal_bytes_that_are_copied_in_while_their_document_is_removed_are_there_afterwards(self):
        for n in range(3):
            data, since = os.urandom(5000), self.sandbox.last_request()
            write(os.path.join(self.dir, "a%d.pdf" % n), data)
            self.sandbox.fault(route="detach", action="stall", ms=1000)
            with open(os.path.join(self.dir, "b%d.pdf" % n), "wb", buffering=0) as f:  # the kernel has the folder locked meanwhile
                f.write(data)
                removing = begin(["rm", os.path.join(self.dir, "a%d.pdf" % n)])
                wait_for(lambda: [r for r in self.sandbox.requests(since) if r["route"] == "detach"], 10, "it is being removed")
            self.assertEqual(0, finish(removing, 30).status)
            self.assertEqual(1, self.sandbox.hashes(self.session).count(sha256_of(data)))
        self.assertEqual(["b0.pdf", "b1.pdf", "b2.pdf"], sorted(os.listdir(self.dir)))


class Settling(SharedMount):
    options = {"settle": "2s", "naming": "session"}

    def test_what_settles_asks_for_nothing_before_its_time(self):
        since = self.sandbox.last_request()
        path = os.path.join(self.dir, "scan.pdf")
        write(path, os.urandom(6 * MIB))
        self.assertEqual([], steps(self.sandbox, since))
        wait_for(lambda: steps(self.sandbox, since) == ["sign", "put", "upload"], 20, "it is sent")


class Ends(MountCase):
    def begin(self, **options):
        folder = self.new_folder()
        self.sandbox = self.new_sandbox(folder)
        self.session = self.sandbox.session("Q1")
        self.mount = self.new_mount(self.sandbox, folder, [self.session], **options)
        self.mount.start().names_seen(1)
        return os.path.join(self.mount.path, "Q1")

    def test_a_rename_that_failed_did_not_happen_for_the_next_mount_either(self):
        folder = self.begin(naming="session")
        self.expects("refused for good")
        self.sandbox.fault(route="upload", status=422, body={"message": "No.", "errors": {"file": ["No."]}})
        part, data = os.path.join(folder, "scan.pdf.part"), os.urandom(5000)
        write(part, data)
        self.refused(errno.EBADMSG, os.rename, part, os.path.join(folder, "scan.pdf"))
        self.mount.kill()
        self.mount.start()
        wait_for(lambda: os.path.isdir(folder), 20, "its folder shows")
        self.assertEqual(["scan.pdf.part"], os.listdir(folder))
        self.assertEqual(data, read(part))

    def test_a_scratch_file_whose_rename_finds_the_disk_full_is_one_still_and_can_be_renamed_later(self):
        disk = self.new_folder()
        if run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", disk]).status != 0:
            raise unittest.SkipTest("no tmpfs can be mounted")
        try:
            self.rename_on_full(disk)
        finally:
            run(["umount", "-l", disk])

    def rename_on_full(self, disk):
        folder = self.begin(naming="session", state_dir=os.path.join(disk, "state"))
        self.expects("disk|full|could not be|can't be")
        part, data = os.path.join(folder, "scan.pdf.part"), os.urandom(5000)
        write(part, data)
        filler = os.path.join(disk, "filler")
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as f:
            while True:
                f.write(b"x" * 4096)
        self.refused(errno.ENOSPC, os.rename, part, os.path.join(folder, "scan.pdf"))
        self.assertEqual(["scan.pdf.part"], os.listdir(folder))
        self.assertEqual("local", attribute(part, "state"))
        os.unlink(filler)
        os.rename(part, os.path.join(folder, "scan.pdf"))
        self.assertEqual([sha256_of(data)], self.sandbox.hashes(self.session))

    def test_an_upload_that_stands_still_does_not_hold_the_unmount_and_goes_on_at_the_next(self):
        folder, since = self.begin(upload="background"), self.sandbox.last_request()
        self.sandbox.fault(route="put", action="stall", ms=600000)
        data = os.urandom(100_000)
        write(os.path.join(folder, "scan.pdf"), data)
        wait_for(lambda: "put" in steps(self.sandbox, since), 10, "it is being sent")
        began = time.monotonic()
        self.mount.stop()
        self.assertLess(time.monotonic() - began, 20 * SLACK)
        self.assertIn("1", self.mount.log().splitlines()[-2])  # how many wait
        self.sandbox.clear_faults()
        self.mount.start()
        wait_for(lambda: len(self.sandbox.hashes(self.session)) == 1, 20, "it is there")
        wait_for(lambda: read(os.path.join(folder, "scan.pdf")) == data, 20, "it is shown")


if __name__ == "__main__":
    main()
