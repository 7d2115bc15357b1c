"""Real programs write into a mount, each in the way it has: with temporary names, with closes that come early, late,
from a child or from another thread. Whatever the way, the service ends up with one document, and when it refuses or is away the
program is told as far as it listens, and the bytes are in one place."""

import os
import shutil
import threading
import time
import zipfile

from harness import (HERE, PYTHON, SFTP_SERVER, SharedMount, attribute, environment, folder_name, main, needs,
                     paper_bytes, read, run, sha256_of, wait_for, write)


class Writer:
    """words: a text for bash; it finds SRC (the file), DST (where it shall go), DIR, SRCDIR, NAME and ZIP (an archive of SRCDIR).
    told: its exit status says when a close or rename fails. cleans: it then removes what it wrote.
    again: the exit status of a second run, None when any will do."""

    def __init__(self, name, words, requires=(), told=True, cleans=False, again=None, data=None, loses_source=False):
        self.name, self.words, self.requires, self.told, self.cleans = name, words, requires, told, cleans
        self.again, self.data, self.loses_source = again, data, loses_source
        self.slug = "".join(c if c.isalnum() else "_" for c in name).strip("_")

    def here(self):
        return all(shutil.which(one) or os.path.exists(one) for one in self.requires)


def python(text):
    return "%s -c 'import os, shutil; e = os.environ; %s'" % (PYTHON, text)


def node(text):
    return "node -e 'const fs = require(\"fs\"), e = process.env; %s'" % text


VIM = "vim" if shutil.which("vim") else "vim.tiny"

WRITERS = [
    Writer("cp", 'cp "$SRC" "$DST"'),
    Writer("cp -a", 'cp -a "$SRC" "$DST"'),
    Writer("cp -r", 'cp -r "$SRCDIR/." "$DIR"'),
    Writer("cp -u", 'cp -u "$SRC" "$DST"', again=0),
    Writer("cp -n", 'cp -n "$SRC" "$DST"', again=0),
    Writer("mv from another file system", 'mv "$SRC" "$DST"', loses_source=True),
    Writer("rsync -a", 'rsync -a "$SRC" "$DIR/"', ["rsync"], cleans=True, again=0),
    Writer("rsync --inplace", 'rsync -a --inplace "$SRC" "$DIR/"', ["rsync"], again=0),
    Writer("install", 'install -m 640 "$SRC" "$DST"'),
    Writer("tar x", 'tar cf - -C "$SRCDIR" "$NAME" | tar xf - -C "$DIR"'),
    Writer("unzip", 'unzip -qo "$ZIP" -d "$DIR"', ["unzip"], told=False),
    Writer("dd bs=1k", 'dd if="$SRC" of="$DST" bs=1k status=none'),
    Writer("cat into", 'cat "$SRC" > "$DST"'),
    Writer("two cats into", '(head -c 20000 "$SRC"; tail -c +20001 "$SRC"; :) > "$DST"', told=False),
    Writer("tee", 'tee "$DST" < "$SRC" > /dev/null'),
    Writer("echo builtin", 'echo "%PDF-1.4 written by echo" > "$DST"', told=False, data=b"%PDF-1.4 written by echo\n"),
    Writer("python copy", python('shutil.copy(e["SRC"], e["DST"])')),
    Writer("python copy2", python('shutil.copy2(e["SRC"], e["DST"])')),
    Writer("python copytree", python('shutil.copytree(e["SRCDIR"], e["DIR"], dirs_exist_ok=True)')),
    Writer("python without close", python('f = os.fdopen(os.open(e["DST"], os.O_WRONLY | os.O_CREAT, 0o644), "wb", 0); '
                                          'f.write(open(e["SRC"], "rb").read()); os._exit(0)'), told=False),
    Writer("python child", python('import subprocess; f = open(e["DST"], "wb"); '
                                  'subprocess.run(["cat", e["SRC"]], stdout=f, check=True); f.close()'), told=None),
    Writer("node copyFile", node('fs.copyFile(e.SRC, e.DST, err => { if (err) throw err })'), ["node"], cleans=True),
    Writer("node writeFile", node('fs.writeFile(e.DST, fs.readFileSync(e.SRC), err => { if (err) throw err })'), ["node"]),
    Writer("node stream", node('fs.createReadStream(e.SRC).pipe(fs.createWriteStream(e.DST))'), ["node"]),
    Writer("curl -o", 'curl -sS -o "$DST" "file://$SRC"', ["curl"]),
    Writer("vim -es", VIM + ' -es -u NONE -i NONE -b "$SRC" -c \'saveas! $DST\' -c "qa!"', [VIM]),
    Writer("cp to a part file then mv", 'cp "$SRC" "$DST.part" && mv "$DST.part" "$DST"'),
    Writer("gio copy", 'gio copy "$SRC" "$DST"', ["gio"]),
    Writer("sftp put", 'printf \'put "%s" "%s"\\n\' "$SRC" "$DST" | sftp -q -b - -D ' + SFTP_SERVER, ["sftp", SFTP_SERVER]),
    Writer("scp", 'scp -q -D ' + SFTP_SERVER + ' "$SRC" "anyhost:$DST"', ["scp", SFTP_SERVER]),
]

NAME = "invoice.pdf"


class Job:
    """One writer with a file to write and a folder to write it to."""

    def __init__(self, writer, sources, folder):
        self.writer, self.sources, self.folder = writer, os.path.join(sources, writer.slug), folder
        self.data = writer.data or paper_bytes()
        self.path = os.path.join(self.folder, NAME)
        inner = os.path.join(self.sources, "files")
        os.makedirs(inner)
        self.source = os.path.join(inner, NAME)
        self.zip = os.path.join(self.sources, "files.zip")
        self.renew()
        with zipfile.ZipFile(self.zip, "w") as z:
            z.write(self.source, NAME)

    def renew(self):
        if not os.path.exists(self.source):
            write(self.source, self.data)
            os.utime(self.source, ns=(10**18, 1_600_000_000 * 10**9))

    def run(self, seconds=60):
        return run("set -o pipefail; " + self.writer.words, seconds, environment(
            {"SRC": self.source, "DST": self.path, "DIR": self.folder, "SRCDIR": os.path.dirname(self.source), "NAME": NAME,
             "ZIP": self.zip}, home=self.sources), cwd=self.sources)


class EachWriter(SharedMount):
    """Adds a test method for every writer from `check`, named by `sentence`."""

    @classmethod
    def add_tests(cls, sentence, check, among=WRITERS):
        for writer in among:
            def test(self, writer=writer):
                check(self, writer)
            test.__name__ = "test_%s_%s" % (writer.slug, sentence(writer) if callable(sentence) else sentence)
            test = needs(*writer.requires)(test)
            test.writer = writer
            setattr(cls, test.__name__, test)


class AServiceThatAnswers(EachWriter):
    options = {"naming": "session"}  # three steps, whatever the service calls the document

    def check(self, writer):
        job = Job(writer, self.sources, self.dir)
        before = self.sandbox.last_request()
        done = job.run()
        self.assertEqual(0, done.status, done)
        # Who never looks at close(), or leaves the last close to somebody else, is back before the service has it.
        wait_for(lambda: self.sandbox.hashes(self.session), 20, "the document is at the service")
        self.assert_one_document(NAME, job.data)
        self.assertEqual(not writer.loses_source, os.path.exists(job.source))
        status, state = self.sandbox.uploaded
        wait_for(lambda: attribute(job.path, "state") == state, 10, "its state is " + state)
        self.assertEqual(status, attribute(job.path, "status"))
        self.assertEqual(self.sandbox.upload_writes, [r["route"] for r in self.sandbox.writes(before)])

        job.renew()
        before = self.sandbox.last_request()
        done = job.run()
        if writer.again is not None:
            self.assertEqual(writer.again, done.status, done)
        if writer.name == "rsync -a":
            self.assertEqual([], self.sandbox.writes(before), "a second rsync -a sends something")
        time.sleep(0.2)
        self.assert_one_document(NAME, job.data)


AServiceThatAnswers.add_tests("ends_as_exactly_one_document", AServiceThatAnswers.check)


class AllAtOnce(EachWriter):
    """For services that fail: all writers run side by side before the first test, which then look at how it went."""

    @classmethod
    def after_mount(cls):
        cls.jobs, cls.done = {}, {}
        sources = cls.class_folder()
        for name in cls.ids:
            writer = getattr(cls, name).writer
            if writer.here():
                job = cls.jobs[name] = Job(writer, sources, os.path.join(cls.mount.path, folder_name(name)))
                os.listdir(job.folder)
        cls.spoil()

        def write_one(name):
            try:
                cls.done[name] = cls.jobs[name].run(90)
            except AssertionError as e:
                cls.done[name] = e
        threads = [threading.Thread(target=write_one, args=(name,)) for name in cls.jobs]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        cls.afterwards()

    @classmethod
    def spoil(cls):
        raise NotImplementedError

    @classmethod
    def afterwards(cls):
        pass

    def look(self):
        job, done = self.jobs[self._testMethodName], self.done[self._testMethodName]
        if isinstance(done, AssertionError):
            raise done
        if job.writer.told is not None:
            self.assertEqual(job.writer.told, done.status != 0, done)
        if job.writer.loses_source and done.status != 0:
            self.assertEqual(job.data, read(job.source), "the source is gone, and the program knew that it failed")
        return job, done


def told_or_not(writer):
    return "notices" if writer.told else "may not notice" if writer.told is None else "does not notice"


class AServiceThatRefuses(AllAtOnce):
    """A refusal of every upload call."""
    options = {"ttl": "10m", "naming": "session"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.expected = [r"refus|422|400|could not be processed|unsupported|failed"]

    @classmethod
    def spoil(cls):
        status, body = cls.sandbox.refusal
        cls.sandbox.fault(method="POST", path=cls.sandbox.upload_path, status=status, times=0, body=body)

    def check(self, writer):
        job, done = self.look()
        self.assertEqual([], self.sandbox.documents(self.session))
        kept = os.path.join(self.mount.path, ".sessionfs", "failed", os.path.basename(self.dir))
        if writer.cleans:
            self.assertEqual([], os.listdir(self.dir))
            self.assertFalse(os.path.exists(os.path.join(kept, NAME)), "the program removed it, and yet it is kept")
            return
        if "then mv" in writer.name:
            self.assertEqual([NAME + ".part"], os.listdir(self.dir))
            self.assertEqual(job.data, read(job.path + ".part"))
            return
        wait_for(lambda: os.path.exists(os.path.join(kept, NAME)), 15, "the bytes are kept where failures are shown")
        self.assertEqual(job.data, read(os.path.join(kept, NAME)))
        self.assertIn("The file could not be read.", read(os.path.join(kept, NAME + ".why.txt")).decode())
        self.assertEqual([], os.listdir(self.dir), "it is in the session's folder as well")


def attribute_or_none(path, name):
    try:
        return attribute(path, name)
    except OSError:
        return None


AServiceThatRefuses.add_tests(
    lambda w: told_or_not(w).replace(" ", "_") + "_a_refusal_and_the_bytes_are_in_one_place", AServiceThatRefuses.check)


class AServiceThatIsDown(AllAtOnce):
    """Nobody listens; then the service comes back."""
    options = {"ttl": "10m", "close_timeout": "2s"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.expected = [r"refus|away|answer|connect|Connect|later|wait"]

    @classmethod
    def spoil(cls):
        cls.sandbox.control("POST", "/down", {"how": "refuse"})

    @classmethod
    def afterwards(cls):
        cls.listed = {name: os.listdir(job.folder) for name, job in cls.jobs.items()}
        cls.states = {name: attribute_or_none(job.path, "state") for name, job in cls.jobs.items()}
        cls.sandbox.control("POST", "/up")
        cls.mount.command("retry", "--all")
        # Not an assertion: each test tells its own file's fate.
        for _ in range(200):
            if not any(attribute_or_none(job.path, "state") in ("queued", "uploading", "waiting") for job in cls.jobs.values()):
                break
            time.sleep(0.1)

    def check(self, writer):
        job, done = self.look()
        if self.listed[self._testMethodName] == []:
            self.assertTrue(done.status != 0 and (writer.cleans or writer.name == "python child"), "the file is gone: %r" % done)
            self.assertEqual([], self.sandbox.documents(self.session))
            return
        if done.status != 0 and "then mv" in writer.name:  # the rename failed: what it was to rename is still there
            self.assertEqual([NAME + ".part"], self.listed[self._testMethodName])
            self.assertEqual([], self.sandbox.documents(self.session))
            return
        self.assertEqual([NAME], self.listed[self._testMethodName])
        self.assertIn(self.states[self._testMethodName], ("waiting", "queued", "uploading"))
        self.assert_one_document(NAME, job.data)


AServiceThatIsDown.add_tests(
    lambda w: told_or_not(w).replace(" ", "_") + "_an_outage_and_nothing_is_lost_or_doubled", AServiceThatIsDown.check)


class SeveralFiles(SharedMount):
    """Whole folders at a time."""

    def test_every_sample_arrives_byte_for_byte(self):
        samples = os.path.join(os.path.dirname(HERE), "samples")
        names = [n for n in os.listdir(samples) if n != "README"]
        self.assertEqual(0, run(["cp", *(os.path.join(samples, n) for n in names), self.dir]).status)
        self.assertEqual(sorted(sha256_of(os.path.join(samples, n)) for n in names), self.sandbox.hashes(self.session))
        self.assertEqual(sorted(names), sorted(os.listdir(self.dir)))
        for n in names:
            self.assertEqual(read(os.path.join(samples, n)), read(os.path.join(self.dir, n)), n)

    @needs("rsync")
    def test_rsync_of_twenty_files_twice_sends_twenty_documents_once(self):
        for i in range(20):
            self.paper("bill %02d.pdf" % i)
        for _ in range(2):
            done = run(["rsync", "-a", self.sources + "/", self.dir + "/"])
            self.assertEqual(0, done.status, done)
            self.assertEqual(20, len(self.sandbox.documents(self.session)))
        before = self.sandbox.last_request()
        self.assertEqual(0, run(["rsync", "-a", self.sources + "/", self.dir + "/"]).status)
        self.assertEqual([], self.sandbox.writes(before))

    def test_eight_copies_at_once_each_arrive_once(self):
        papers = [self.paper("bill %d.pdf" % i) for i in range(24)]
        done = run("printf '%s\\0' " + " ".join("'%s'" % p for p in papers) + " | xargs -0 -n 1 -P 8 cp -t '%s'" % self.dir)
        self.assertEqual(0, done.status, done)
        self.assertEqual(sorted(map(sha256_of, papers)), self.sandbox.hashes(self.session))

    def test_equal_bytes_under_two_names_show_under_both_with_one_id_or_as_two_documents(self):
        """As the service has it."""
        documents = 1 if self.sandbox.gives_equal_bytes_one_document else 2
        paper = self.paper()
        for name in ("first.pdf", "second.pdf"):
            self.assertEqual(0, run(["cp", paper, os.path.join(self.dir, name)]).status)
        self.assertEqual(["first.pdf", "second.pdf"], sorted(os.listdir(self.dir)))
        self.assertEqual(documents, len(self.sandbox.documents(self.session)))
        ids = {attribute(os.path.join(self.dir, name), "id") for name in ("first.pdf", "second.pdf")}
        self.assertEqual(documents, len(ids))
        self.assertNotIn(None, ids)

    def test_a_scratch_name_never_leaves_the_machine(self):
        before = self.sandbox.last_request()
        for name in (".~lock.a.pdf#", "a.pdf.part", ".a.pdf.Xk3dF9", "~$a.docx", "a.pdf~", "._a.pdf", "4913", "a.crdownload", "a.tmp"):
            path = os.path.join(self.dir, name)
            write(path, b"first")
            with open(path, "r+b") as f:  # as ordinary as any file
                f.seek(2)
                f.write(b"XY")
                f.truncate(4)
            self.assertEqual(b"fiXY", read(path), name)
            self.assertEqual("local", attribute(path, "state"), name)
            os.unlink(path)
        self.assertEqual([], self.sandbox.writes(before))
        self.assertEqual([], self.sandbox.documents(self.session))

    def test_an_empty_file_is_not_uploaded_until_it_has_bytes(self):
        path = os.path.join(self.dir, NAME)
        before = self.sandbox.last_request()
        self.assertEqual(0, run(["touch", path]).status)
        self.assertEqual([], self.sandbox.writes(before))
        self.assertEqual([NAME], os.listdir(self.dir))
        data = paper_bytes()
        with open(path, "wb") as f:
            f.write(data)
        self.assert_one_document(NAME, data)

    def test_a_file_just_closed_can_be_listed_and_read_at_once(self):
        data = paper_bytes()
        path = os.path.join(self.dir, NAME)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self.assertIn(NAME, os.listdir(self.dir))
        os.write(fd, data)
        self.assertEqual(len(data), os.stat(path).st_size)
        inode = os.stat(path).st_ino
        os.close(fd)
        self.assertEqual(data, read(path))
        self.assertEqual(inode, os.stat(path).st_ino, "the inode number changed with the upload")
        self.assertEqual(1, os.stat(path).st_nlink)

    def test_the_writers_time_is_kept(self):
        paper = self.paper()
        os.utime(paper, (1_500_000_000, 1_500_000_000))
        self.assertEqual(0, run(["cp", "-p", paper, self.dir]).status)
        self.assertEqual(1_500_000_000, int(os.stat(os.path.join(self.dir, NAME)).st_mtime))


if __name__ == "__main__":
    main()
