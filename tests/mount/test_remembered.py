"""What a mount remembers of the service, across a remount, an outage and another token; and what its refreshes ask for."""

import os
import time

from harness import SLACK, MountCase, attribute, main, wait_for

TTL = "2s"


class Remembered(MountCase):
    def setting(self, documents=20, **options):
        self.folder = self.new_folder()
        self.sandbox = self.new_sandbox(self.folder)
        self.session = self.sandbox.session("Q1")
        self.sandbox.control("POST", "/document", {"session": self.session, "count": documents, "pattern": "bill-{n}.pdf",
                                                   "status": "parsed"})
        self.mount = self.new_mount(self.sandbox, self.folder, [self.session], **{"ttl": TTL, **options})
        self.mount.start().names_seen(1)
        self.path = os.path.join(self.mount.path, "Q1")
        self.assertEqual(documents, len(os.listdir(self.path)))
        self.one = os.path.join(self.path, self.names()[0])
        self.as_of = attribute(self.one, "as_of")

    def down(self, how="refuse"):
        self.sandbox.control("POST", "/down", {"how": how})

    def up(self):
        self.sandbox.control("POST", "/up", {})

    def names(self):
        return sorted(os.listdir(self.path))

    def test_a_remount_shows_the_listing_before_anything_was_answered(self):
        self.setting()
        names = self.names()
        self.mount.stop()
        self.down("blackhole")
        self.mount.start().names_seen(1)
        began = time.monotonic()
        self.assertEqual(names, self.names())
        print("     %d names after %.0f ms, with the service silent" % (len(names), 1000 * (time.monotonic() - began)))
        self.assertEqual(self.as_of, attribute(self.one, "as_of"))
        self.assertIn(os.path.basename(self.one), attribute(self.one, "json"))
        self.up()

    def test_after_a_kill_the_listing_is_there_once_it_was_written(self):
        self.setting()
        names = self.names()
        database = os.path.join(self.mount.options["cache_dir"], "listings.db")
        wait_for(lambda: os.listdir(os.path.join(self.mount.options["cache_dir"], "records")), 10, "the listing is written")
        wait_for(lambda: os.path.getsize(database) + os.path.getsize(database + "-wal") > 20000, 10, "the listing is written")
        self.mount.kill()
        self.down()
        self.mount.start().names_seen(1)
        self.assertEqual(names, self.names())

    def test_another_token_does_not_see_what_the_first_one_listed(self):
        self.setting()
        self.mount.stop()
        self.sandbox.control("POST", "/token", {"token": "rd_live_other", "user": "demo", "abilities": "*"})
        self.mount.write_token("rd_live_other")
        self.down()
        self.mount.start(wait=False)
        time.sleep(2)
        self.assertFalse(os.path.exists(self.one))
        self.mount.kill()
        self.up()

    def test_an_outage_leaves_the_last_tree_and_one_line_in_the_log_and_one_more_when_it_is_over(self):
        self.setting()
        names = self.names()
        self.down()
        for _ in range(4):
            time.sleep(2.5)
            self.assertEqual(names, self.names())
            self.assertEqual(self.as_of, attribute(self.one, "as_of"))
        self.up()
        wait_for(lambda: self.names() and "answers again" in self.mount.log(), 30, "it is said that the service answers again")
        lines = self.mount.log().split("\n")
        self.assertEqual(1, len([l for l in lines if "after" in l and "attempts" in l]), self.mount.log())
        self.assertEqual(1, len([l for l in lines if "answers again" in l]), self.mount.log())

    def test_a_damaged_cache_is_begun_anew(self):
        self.setting()
        names = self.names()
        self.mount.stop()
        with open(os.path.join(self.mount.options["cache_dir"], "listings.db"), "r+b") as f:
            f.write(b"this is no database" * 50)
        self.mount.start().names_seen(1)
        self.assertEqual(names, self.names())
        self.assertIn("begun anew", self.mount.log())

    def test_what_is_gone_while_nobody_was_mounted_leaves_at_the_refresh(self):
        self.setting()
        document = self.sandbox.documents(self.session)[0]
        self.mount.stop()
        self.sandbox.detach(self.session, document["id"])
        self.sandbox.document(self.session, "new.pdf", text="new")
        self.mount.start().names_seen(1)
        wait_for(lambda: "new.pdf" in self.names() and document["filename"] not in self.names(), 10 * SLACK,
                 "the refresh after the remount shows")
        self.assertEqual(20, len(self.names()))


if __name__ == "__main__":
    main()
