"""Random sequences of what programs, people at the service and restarts do to two sessions, against a small model of what
is promised: which names are shown with which bytes, which documents each session has at the service, and what may be
removed. Then the four ways in which a detach could take the only copy, one by one.

Raydocs gives equal bytes of a workspace one document, so the model knows a document by its bytes; with Rossum each upload is a
document of its own, and so is each name.

Environment: SESSIONFS_SEQUENCES   how many (default 60)
             SESSIONFS_STEPS       of each (default 30)
             SESSIONFS_SEED        of everything; printed when a sequence fails, with its steps
             SESSIONFS_CASE        only this one of them, by its number
"""

import base64
import errno
import os
import random
import threading
import time
import unittest

import harness
from harness import SANDBOXES, SERVICE, MountCase, attribute, begin, finish, main, paper_bytes, read, run, sha256_of, wait_for, write

SEQUENCES = int(os.environ.get("SESSIONFS_SEQUENCES") or 60)
STEPS = int(os.environ.get("SESSIONFS_STEPS") or 30)
SEED = os.environ.get("SESSIONFS_SEED") or str(random.SystemRandom().randrange(1 << 32))
ONLY = os.environ.get("SESSIONFS_CASE")
harness.TEST_SECONDS = max(150, SEQUENCES * 4) * harness.SLACK

MERGES = SANDBOXES[SERVICE].gives_equal_bytes_one_document
only_where_equal_bytes_are_one = unittest.skipUnless(MERGES, "each upload is a document of its own")

FINAL = ["a.pdf", "b.pdf", "c.pdf", "D.PDF"]
SCRATCH = ["a.part", ".b.pdf.aB3xYz", "c.tmp"]


class Entry:
    """A name in a session. A document's: ours when this mount attached it and may so take it back."""

    def __init__(self, content, is_document, is_ours=False, has_hash=True):
        self.content, self.is_document, self.is_ours = content, is_document, is_ours
        self.is_attached = is_ours  # by this mount, whether or not it was there before
        self.has_hash = has_hash    # the service tells it

    def __repr__(self):
        return "%s%s" % (sha256_of(self.content)[:4], "" if not self.is_document else " ours" if self.is_ours else " document")


class Model:
    def __init__(self, remove):
        self.remove = remove
        self.names = {"A": {}, "B": {}}
        self.service = {"A": [], "B": []}  # what each document there holds
        self.former = {"A": {}, "B": {}}  # names that went when the service took the document away; they may come back with it

    def names_of(self, session, entry):
        """The names of the document that one of them stands for."""
        return [n for n, e in self.names[session].items() if e is entry or (MERGES and e.is_document and e.content == entry.content)]

    def becomes_document(self, session, name, content, has_hash=True):
        """An upload, or an attach, under this name."""
        was_there = MERGES and content in self.service[session]
        ours = [e for e in self.names[session].values() if e.is_document and e.content == content and e.is_ours]
        entry = Entry(content, True, not was_there or bool(ours), has_hash)
        entry.is_attached = True
        if not was_there:
            self.service[session].append(content)
        self.names[session][name] = entry

    def may_remove(self, session, name):
        e = self.names[session][name]
        if not e.is_document:
            return True
        if self.remove == "recent":
            return e.is_attached and (e.is_ours or len(self.names_of(session, e)) > 1)
        return self.remove == "yes"

    def goes(self, session, name):
        """The name; and the document with the last one."""
        self.went(session, self.names[session].pop(name))

    def went(self, session, entry):
        if entry.is_document and not self.names_of(session, entry):
            self.service[session].remove(entry.content)


class Sequence:
    def __init__(self, test, number, sandbox, mount, ids, names):
        self.test, self.number, self.sandbox, self.mount = test, number, sandbox, mount
        self.ids, self.folders = ids, {k: os.path.join(mount.path, n) for k, n in names.items()}
        self.chance = random.Random("%s/%d" % (SEED, number))
        self.remove = mount.options["remove"]
        self.model = Model(self.remove)
        self.steps = []
        self.made = 0
        self.contents = [self.new_content() for _ in range(3)]

    def new_content(self):
        self.made += 1
        return b"%%PDF-1.4\n%% %s %d %d\n" % (SEED.encode(), self.number, self.made) + self.chance.randbytes(self.chance.choice((20, 4000)))

    def content(self):
        return self.chance.choice(self.contents + [self.new_content()])

    def path(self, session, name):
        return os.path.join(self.folders[session], name)

    def step(self, *words):
        self.steps.append(" ".join(map(str, words)))

    def attempt(self, number, call, *arguments):
        """The call ends with this errno; 0: it succeeds."""
        try:
            call(*arguments)
            got = 0
        except OSError as e:
            got = e.errno
        if got != number:
            raise AssertionError("%s, %s was to come" % (errno.errorcode.get(got, "success"), errno.errorcode.get(number, "success")))

    def pick(self, kinds, session=None):
        """A name there is: (session, name, entry), or None."""
        found = [(s, n, e) for s in ("A", "B") if session in (None, s) for n, e in sorted(self.model.names[s].items())
                 if (e.is_document and "document" in kinds) or (not e.is_document and "scratch" in kinds)]
        return self.chance.choice(found) if found else None

    # -- steps: each does it and tells the model

    def write_file(self):
        session, name = self.chance.choice("AB"), self.chance.choice(FINAL + SCRATCH)
        self.write_as(session, name, self.content(), self.chance.choice(("plainly", "in pieces", "by dup", "by children")))

    def write_as(self, session, name, content, how):
        there = self.model.names[session].get(name)
        self.step("write", session, name, sha256_of(content)[:4], how)
        if there is not None and there.is_document:
            self.attempt(errno.EACCES, os.open, self.path(session, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            return
        first, second = content[:len(content) // 2], content[len(content) // 2:]
        path = self.path(session, name)
        if how == "by children":
            one, two = (write(os.path.join(self.mount.folder, "part %d.%d" % (self.number, i)), p) for i, p in enumerate((first, second)))
            done = run("(cat '%s'; cat '%s') > '%s'" % (one, two, path), 30)
            if done.status != 0:
                raise AssertionError(done)
        else:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.write(fd, first)
            if how == "by dup":
                other = os.dup(fd)
                os.close(fd)  # what there is goes; the rest takes its place
                fd = other
            elif how == "in pieces":
                os.fsync(fd)
            os.write(fd, second)
            os.close(fd)
        if name in SCRATCH:
            self.model.names[session][name] = Entry(content, False)
        else:
            self.model.becomes_document(session, name, content)

    def rename(self):
        picked = self.pick(("scratch",))
        if picked is None:
            return
        session, name, entry = picked
        to = self.chance.choice((session, session, "B" if session == "A" else "A"))
        self.rename_to(session, name, entry, to, self.chance.choice(FINAL + FINAL + SCRATCH))

    def rename_to(self, session, name, entry, to, new_name):
        self.step("rename", session, name, to, new_name)
        if (session, name) == (to, new_name):
            return
        over = self.model.names[to].get(new_name)
        paths = self.path(session, name), self.path(to, new_name)
        if over is not None and over.is_document:
            if new_name in SCRATCH:
                raise AssertionError("a document under a scratch name")
            if over.content == entry.content and over.has_hash:
                # The service has it; whether the mount has heard so by now is a race, and what had to be sent for it another question.
                wait_for(lambda: attribute(paths[1], "state") not in ("queued", "uploading"), 10, "it is known to be there")
                since = self.sandbox.last_request()
                self.attempt(0, os.rename, *paths)
                sent = self.sandbox.writes(since)
                if sent:
                    raise AssertionError("replacing by equal bytes sent %s" % [r["route"] for r in sent])
                del self.model.names[session][name]
                return
            if not self.model.may_remove(to, new_name):
                self.attempt(errno.EEXIST, os.rename, *paths)
                return
        self.attempt(0, os.rename, *paths)
        del self.model.names[session][name]
        if over is not None:
            was = self.model.names[to].pop(new_name)
        if new_name in SCRATCH:
            self.model.names[to][new_name] = entry
            return
        self.model.becomes_document(to, new_name, entry.content)
        if over is not None:
            self.model.went(to, was)

    def replace_by_equal_bytes(self):
        picked = self.pick(("document",))
        if picked is None:
            return
        session, name, entry = picked
        scratch = self.chance.choice(SCRATCH)
        if scratch in self.model.names[session]:
            return
        self.write_as(session, scratch, entry.content, "plainly")
        self.rename_to(session, scratch, self.model.names[session][scratch], session, name)

    def second_name(self):
        """Equal bytes under another name."""
        picked = self.pick(("document",))
        free = picked and [n for n in FINAL if n not in self.model.names[picked[0]]]
        if free:
            self.write_as(picked[0], self.chance.choice(free), picked[2].content, "plainly")

    def unlink(self):
        picked = self.pick(("document", "scratch"))
        if picked is None:
            return
        session, name, _ = picked
        self.step("unlink", session, name)
        if self.model.may_remove(session, name):
            self.attempt(0, os.unlink, self.path(session, name))
            self.model.goes(session, name)
        else:
            self.attempt(errno.EPERM, os.unlink, self.path(session, name))

    def link(self):
        picked = self.pick(("document",))
        if picked is None:
            return
        session, name, entry = picked
        to, new_name = "B" if session == "A" else "A", self.chance.choice(FINAL)
        self.step("ln", session, name, to, new_name)
        if new_name in self.model.names[to]:
            self.attempt(errno.EEXIST, os.link, self.path(session, name), self.path(to, new_name))
            return
        self.attempt(0, os.link, self.path(session, name), self.path(to, new_name))
        self.model.becomes_document(to, new_name, entry.content, entry.has_hash)

    def move_document(self):
        picked = self.pick(("document",))
        if picked is None:
            return
        session, name, entry = picked
        to, new_name = self.chance.choice("AB"), self.chance.choice(FINAL)
        if new_name in self.model.names[to]:
            return
        self.step("mv", session, name, to, new_name)
        if to == session or self.remove != "yes":
            self.attempt(errno.EPERM, os.rename, self.path(session, name), self.path(to, new_name))
            return
        self.attempt(0, os.rename, self.path(session, name), self.path(to, new_name))
        self.model.becomes_document(to, new_name, entry.content, entry.has_hash)
        self.model.goes(session, name)

    def refresh(self):
        for folder in self.folders.values():
            done = self.mount.command("refresh", folder)
            if done.status != 0:
                raise AssertionError(done)

    def remote_add(self):
        session, content, name = self.chance.choice("AB"), self.new_content(), "r%d.pdf" % self.made
        self.step("added at the service", session, name)
        self.sandbox.document(self.ids[session], name, base64=base64.b64encode(content).decode())
        self.refresh()
        self.model.service[session].append(content)
        self.model.names[session][name] = Entry(content, True, has_hash=MERGES)
        self.contents.append(content)

    def document_id(self, session, content):
        return next(d["id"] for d in self.sandbox.documents(self.ids[session]) if d["sha256"] == sha256_of(content))

    def remote_detach(self):
        session = self.chance.choice("AB")
        if not self.model.service[session]:
            return
        _, name, entry = self.pick(("document",), session)
        self.step("detached at the service", session, sha256_of(entry.content)[:4])
        self.sandbox.detach(self.ids[session], attribute(self.path(session, name), "id"))
        self.refresh()
        self.model.service[session].remove(entry.content)
        for name in self.model.names_of(session, entry):
            self.model.former[session][name] = self.model.names[session].pop(name)

    def remote_attach(self):
        session = self.chance.choice("AB")
        other = "B" if session == "A" else "A"
        there = sorted(set(self.model.service[other]) - set(self.model.service[session]))
        if not there or not MERGES:
            return
        content = self.chance.choice(there)
        self.step("attached at the service", session, sha256_of(content)[:4])
        self.sandbox.control("POST", "/attach", {"session": self.ids[session], "document": self.document_id(other, content)})
        self.refresh()
        self.model.service[session].append(content)
        # Under the service's name, or under those that were the document's here before.
        new = wait_for(lambda: [n for n in os.listdir(self.folders[session]) if n not in self.model.names[session]], 10, "it shows")
        self.come_back(session)
        for name in new:
            if name not in self.model.names[session]:
                self.model.names[session][name] = Entry(content, True)

    def come_back(self, session):
        """A name goes on being its document's while that is away; the same bytes bring it back, sooner or later."""
        for name in os.listdir(self.folders[session]):
            former = self.model.former[session].get(name)
            if name not in self.model.names[session] and former and former.content in self.model.service[session]:
                self.model.names[session][name] = self.model.former[session].pop(name)

    def remount(self):
        ending = self.chance.choice(("unmounted", "killed"))
        self.step(ending, "and mounted again")
        if ending == "killed":
            time.sleep(3 * harness.SLACK)  # a scratch file survives a crash once it has rested a moment
            self.mount.kill()
        else:
            wait_for(lambda: self.mount.unmount().status == 0, 10, "unmounted")
            self.mount.stop()
        self.mount.start()
        wait_for(lambda: all(map(os.path.isdir, self.folders.values())), 15, "its folders show")

    # -- and looking

    def check(self):
        for session in ("A", "B"):
            wanted = sorted(map(sha256_of, self.model.service[session]))
            if self.mount.options["upload"] == "background":
                wait_for(lambda: self.sandbox.hashes(self.ids[session]) == wanted, 10, "%s has %s, its model %s" % (
                    session, [h[:4] for h in self.sandbox.hashes(self.ids[session])], [h[:4] for h in wanted]))
            there = self.sandbox.hashes(self.ids[session])
            if there != wanted:
                raise AssertionError("%s has %s at the service, its model %s" % (session, [h[:4] for h in there], [h[:4] for h in wanted]))
            self.come_back(session)
            names, shown = sorted(self.model.names[session]), sorted(os.listdir(self.folders[session]))
            if names != shown:
                raise AssertionError("%s shows %s, its model %s" % (session, shown, names))
            if not MERGES and self.mount.options["upload"] == "background":
                # The service has the bytes before the mount knows which document they are; what crosses that is test_rossum.py's.
                wait_for(lambda: not any(attribute(self.path(session, n), "state") in ("queued", "uploading")
                                         for n in self.model.names[session] if n in FINAL), 10, "nothing is under way")
        for session in ("A", "B"):
            for name, entry in self.model.names[session].items():
                if self.chance.random() < 0.2 and read(self.path(session, name)) != entry.content:
                    raise AssertionError("%s/%s has other bytes" % (session, name))

    def run(self):
        weighted = ([self.write_file] * 6 + [self.rename] * 4 + [self.replace_by_equal_bytes] * 2 + [self.second_name] * 3 +
                    [self.unlink] * 5 + [self.link] * 2 + [self.move_document] * 2 + [self.remote_add, self.remote_detach,
                                                                                      self.remote_attach])
        for _ in range(STEPS):
            do = self.remount if self.chance.random() < 0.02 else self.chance.choice(weighted)
            do()
            try:
                self.check()
            except OSError as e:
                raise AssertionError("looking: %s" % e) from None


class AgainstTheModel(MountCase):
    def test_random_sequences_do_what_the_model_says(self):
        self.expects(r".")
        ways = [{"remove": remove, "upload": upload, "naming": naming} for remove in ("recent", "yes", "no")
                for upload, naming in (("close", "session"), ("close", "workspace"), ("background", "session"))]
        numbers = [n for n in range(SEQUENCES) if not ONLY or n == int(ONLY)]
        wrong, steps = [], [0]

        def work(lane):
            for way in range(lane, len(ways), 3):
                mine = [n for n in numbers if n % len(ways) == way]
                if mine:
                    self.several(mine, ways[way], wrong, steps)
        threads = [threading.Thread(target=work, args=(lane,), daemon=True) for lane in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        print("     %d sequences, %d steps, seed %s" % (len(numbers), steps[0], SEED), flush=True)
        if wrong:
            self.fail("SESSIONFS_SEED=%s: %d sequences failed\n%s" % (SEED, len(wrong), "\n".join(wrong)))

    def several(self, numbers, way, wrong, steps):
        folder = self.new_folder()
        sandbox = self.new_sandbox(folder)
        ids = {n: {k: sandbox.session("%s %d" % (k, n)) for k in "AB"} for n in numbers}
        mount = self.new_mount(sandbox, folder, [i for pair in ids.values() for i in pair.values()], ttl="10m", **way)
        mount.start().names_seen(2 * len(numbers))
        for n in numbers:
            one = Sequence(self, n, sandbox, mount, ids[n], {k: "%s %d" % (k, n) for k in "AB"})
            try:
                one.run()
            except Exception as e:
                wrong.append("sequence %d, %s\n    %s\n  %s: %s" % (n, way, "\n    ".join(one.steps), type(e).__name__, e))
                if mount.process is None or mount.process.poll() is not None:
                    return
            steps[0] += len(one.steps)


class TheOnlyCopy(MountCase):
    """The four ways in which a detach could take it, each under every rule of removing that lets it come so far."""

    def setting(self, **options):
        folder = self.new_folder()
        self.sandbox = self.new_sandbox(folder)
        self.session = self.sandbox.session("Q1")
        self.mount = self.new_mount(self.sandbox, folder, [self.session], **{"ttl": "1s", **options})
        self.mount.start().names_seen(1)
        self.dir = os.path.join(self.mount.path, "Q1")
        self.assertEqual([], os.listdir(self.dir))
        self.data = paper_bytes()
        self.source = write(os.path.join(folder, "source.pdf"), self.data)

    def copy(self, name):
        path = os.path.join(self.dir, name)
        self.assertEqual(0, run(["cp", self.source, path]).status)
        return path

    def there(self):
        return self.sandbox.hashes(self.session)

    def under_each_rule(self, body, *removes):
        for remove in removes or ("recent", "yes"):
            for naming in ("session", "workspace"):
                with self.subTest(remove=remove, naming=naming):
                    self.setting(remove=remove, naming=naming)
                    body()

    @only_where_equal_bytes_are_one
    def test_removing_one_of_two_names_of_a_document_keeps_it_and_the_last_one_detaches(self):
        def body():
            first, second = self.copy("first.pdf"), self.copy("second.pdf")
            self.mount.stop()
            self.mount.start().names_seen(1)  # the names are known from the state alone
            os.unlink(first)
            self.assertEqual([sha256_of(self.data)], self.there())
            self.assertEqual(["second.pdf"], os.listdir(self.dir))
            self.assertEqual(self.data, read(second))
            os.unlink(second)
            self.assertEqual([], self.there())
        self.under_each_rule(body)

    def test_replacing_by_equal_bytes_sends_and_detaches_nothing(self):
        def body():
            path = self.copy("bill.pdf")
            for scratch in (".bill.pdf.aB3xYz", "bill.part"):
                since = self.sandbox.last_request()
                os.rename(write(os.path.join(self.dir, scratch), self.data), path)
                self.assertEqual([], self.sandbox.writes(since))
                self.assertEqual([sha256_of(self.data)], self.there())
                self.assertEqual(["bill.pdf"], os.listdir(self.dir))
        self.under_each_rule(body)

    def test_a_document_that_was_there_before_an_upload_of_equal_bytes_is_not_detached_with_it(self):
        """It came after the mount listed the session, which it did longer than a ttl ago."""
        def body():
            time.sleep(1.5)
            document = self.sandbox.document(self.session, "theirs.pdf", base64=base64.b64encode(self.data).decode())
            copy = self.copy("mine.pdf")
            try:
                os.unlink(copy)
            except PermissionError:
                pass
            self.assertEqual([document["id"]], [d["id"] for d in self.sandbox.documents(self.session)])
        self.under_each_rule(body, "recent")

    def test_a_document_that_was_there_before_is_not_detached_when_what_superseded_it_was_open(self):
        """Equal bytes sent by a first close, then more of them: the first version is somebody else's document."""
        self.setting(remove="recent")
        time.sleep(1.5)
        theirs = self.sandbox.document(self.session, "theirs.pdf", base64=base64.b64encode(self.data).decode())
        fd = os.open(os.path.join(self.dir, "mine.pdf"), os.O_WRONLY | os.O_CREAT)
        os.write(fd, self.data)
        other = os.dup(fd)
        os.close(fd)
        os.write(other, b"and more")
        os.close(other)
        wait_for(lambda: len(self.there()) == 2, 10, "both are there")
        self.assertIn(theirs["id"], [d["id"] for d in self.sandbox.documents(self.session)])
        self.assertEqual(sorted([sha256_of(self.data), sha256_of(self.data + b"and more")]), self.there())

    @only_where_equal_bytes_are_one
    def test_unlinking_while_equal_bytes_are_under_way_leaves_them_there(self):
        def body():
            for route, when in (("attach", "before"), ("attach", "after"), ("get_session", "before"), ("list", "before")):
                write(self.source, self.data + route.encode() + when.encode())
                wanted = [*self.there(), sha256_of(self.source)]
                first, name = self.copy("first.pdf"), "second.pdf"
                self.sandbox.fault(route=route, when=when, action="stall", ms=1000, times=0)
                second = begin(["cp", self.source, os.path.join(self.dir, name)])
                self.kept.append(second)
                wait_for(lambda: second.poll() is not None or name in os.listdir(self.dir), 10, "it is on its way")
                time.sleep(0.2)
                os.unlink(first)
                self.assertEqual(0, finish(second, 30).status)
                self.sandbox.clear_faults()
                wait_for(lambda: self.mount.status()["waiting"] == 0, 15, "nothing waits")
                self.assertEqual(sorted(wanted), self.there(), "%s, stalled %s" % (route, when))
                self.assertNotIn("first.pdf", os.listdir(self.dir))
                self.assertEqual(read(self.source), read(os.path.join(self.dir, name)))
                os.unlink(os.path.join(self.dir, name))
                self.assertEqual(sorted(wanted[:-1]), self.there(), "it was ours alone")
        self.under_each_rule(body)


if __name__ == "__main__":
    main()
