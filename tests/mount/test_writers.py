"""Real programs write into a mount, each in the way it has: with temporary names, with closes that come early, late,
from a child or from another thread. Whatever the way, the service ends up with one document, and when it refuses or is away the
program is told as far as it listens, and the bytes are in one place."""

import base64
import contextlib
import os
import shutil
import threading
import time
import unittest
import zipfile

from harness import (HERE, PYTHON, SFTP_SERVER, SLACK, SLOW, SharedMount, attribute, environment, folder_name, main, needs,
                     paper_bytes, read, run, sha256_of, wait_for, write)


class Writer:
    """words: a text for bash; it finds SRC (the file), DST (where it shall go), DIR, SRCDIR, NAME and ZIP (an archive of SRCDIR).
    told: its exit status says when a close or rename fails. cleans: it then removes what it wrote. renames: it writes a part file.
    again: the exit status of a second run, None when any will do."""

    def __init__(self, name, words, requires=(), told=True, cleans=False, again=None, data=None, loses_source=False, renames=False):
        self.name, self.words, self.requires, self.told, self.cleans = name, words, requires, told, cleans
        self.again, self.data, self.loses_source, self.renames = again, data, loses_source, renames
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
    Writer("cp to a part file then mv", 'cp "$SRC" "$DST.part" && mv "$DST.part" "$DST"', renames=True),
    Writer("gio copy", 'gio copy "$SRC" "$DST"', ["gio"]),
    Writer("sftp put", 'printf \'put "%s" "%s"\\n\' "$SRC" "$DST" | sftp -q -b - -D ' + SFTP_SERVER, ["sftp", SFTP_SERVER]),
    Writer("scp", 'scp -q -D ' + SFTP_SERVER + ' "$SRC" "anyhost:$DST"', ["scp", SFTP_SERVER]),
]

FD = 'i = os.open(e["SRC"], 0); n = os.fstat(i).st_size; o = os.open(e["DST"], os.O_WRONLY | os.O_CREAT, 0o644); at = 0\n'
DATA = 'd = open(e["SRC"], "rb").read(); o = os.open(e["DST"], os.O_WRONLY | os.O_CREAT, 0o644)\n'

# Less usual ways. Crossed with faults under SESSIONFS_SLOW=1.
ODD_WRITERS = [
    Writer("pathlib", python('import pathlib; pathlib.Path(e["DST"]).write_bytes(pathlib.Path(e["SRC"]).read_bytes())')),
    Writer("zipfile", python('import zipfile; zipfile.ZipFile(e["ZIP"]).extractall(e["DIR"])')),
    Writer("python replace", python('t = e["DST"] + ".part"; shutil.copyfile(e["SRC"], t); shutil.copystat(e["SRC"], t); '
                                    'os.replace(t, e["DST"])'), renames=True),
    Writer("sendfile", python(FD + 'while at < n: at += os.sendfile(o, i, at, n - at)\nos.close(o)')),
    Writer("splice", python(FD + 'r, w = os.pipe()\nwhile at < n:\n  k = os.splice(i, w, min(n - at, 60000)); at += k\n'
                            '  while k: k -= os.splice(r, o, k)\nos.close(o)')),
    Writer("fallocate too much and cut", python(DATA + 'os.posix_fallocate(o, 0, len(d) + 99999); os.write(o, d); '
                                                'os.ftruncate(o, len(d)); os.close(o)')),
    Writer("backwards", python(DATA + 'for a in range((len(d) - 1) // 1000 * 1000, -1, -1000): os.pwrite(o, d[a:a + 1000], a)\n'
                               'os.close(o)')),
    Writer("eight threads", python('from concurrent.futures import ThreadPoolExecutor as T\n' + DATA + 'with T(8) as p: '
                                   'list(p.map(lambda a: os.pwrite(o, d[a:a + 500], a), range(0, len(d), 500)))\nos.close(o)')),
    Writer("half by a child", python(DATA + 'os.write(o, d[:9999])\nif os.fork() == 0:\n  os.write(o, d[9999:]); os.close(o); os._exit(0)\n'
                                     'os.wait(); os.close(o)'), told=None),
    Writer("a child that outlives it", python(DATA + 'import time\nif os.fork() == 0:\n  time.sleep(0.3); os.write(o, d)\nos._exit(0)'),
           told=False),
    Writer("dd O_DIRECT", 'dd if="$SRC" of="$DST" bs=4096 oflag=direct status=none'),
    Writer("dd sparse fsync", 'dd if="$SRC" of="$DST" bs=4096 conv=sparse,fsync status=none'),
    Writer("inherited descriptor", 'exec 7> "$DST"; cat "$SRC" >&7; exec 7>&-', told=False),
    Writer("perl", """perl -e 'open(I, "<:raw", $ENV{SRC}) && open(O, ">:raw", $ENV{DST}) or die $!; local $/; print O <I>; close(O) or die $!'""",
           ["perl"]),
    Writer("several renames", 'cp "$SRC" "$DIR/a.tmp" && mv "$DIR/a.tmp" "$DIR/b~" && mv "$DIR/b~" "$DST.part" && mv "$DST.part" "$DST"',
           renames=True),
    Writer("rsync --append", 'head -c 9999 "$SRC" > "$DST.part"; mv "$DST.part" part; rsync -a --append "$SRC" "$DIR/"', ["rsync"]),
    Writer("node cpSync", node('fs.cpSync(e.SRC, e.DST)'), ["node"], cleans=True),
    Writer("gio save", 'gio save "$DST" < "$SRC"', ["gio"]),
    Writer("gio move", 'gio move "$SRC" "$DST"', ["gio"], loses_source=True),
    Writer("busybox cp", 'busybox cp "$SRC" "$DST"', ["busybox"]),
    Writer("busybox tar", 'tar cf - -C "$SRCDIR" "$NAME" | busybox tar xf - -C "$DIR"', ["busybox"], told=False),
    Writer("bsdtar", 'bsdtar xf "$ZIP" -C "$DIR"', ["bsdtar"], told=False),
    Writer("7z", '7z x -bso0 -bsp0 -o"$DIR" "$ZIP"', ["7z"]),
    Writer("cpio", 'cd "$SRCDIR" && echo "$NAME" | cpio -pdm --quiet "$DIR"', ["cpio"]),
]
MAY_FAIL = WRITERS + ODD_WRITERS if SLOW else WRITERS

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
        self.pack()

    def pack(self):
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
    def add_tests(cls, sentence, check, among=MAY_FAIL):
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


AServiceThatAnswers.add_tests("ends_as_exactly_one_document", AServiceThatAnswers.check, WRITERS)


def attribute_or_none(path, name):
    try:
        return attribute(path, name)
    except OSError:
        return None


# Where the bytes of a file that a program wrote can be; exactly one of them holds, whatever the service does.
SERVICE, QUEUE, FAILED, SCRATCH, NOWHERE = "the service", "the queue", "the failed folder", "its scratch name", "nowhere"


class AllAtOnce(EachWriter):
    """A fault crossed with every writer: all run side by side before the first test, and each test looks at how its one went. At the
    end a line tells where the files ended up."""
    fault = None        # what the line says
    recovers = False    # in the end nothing waits
    notices = [r"."]    # what the log may say of it

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.expected = cls.notices

    @classmethod
    def after_mount(cls):
        cls.jobs, cls.done = {}, {}
        sources = cls.class_folder()
        for name in cls.ids:
            writer = getattr(cls, name).writer
            if writer.here():
                job = cls.jobs[name] = Job(writer, sources, os.path.join(cls.mount.path, folder_name(name)))
                cls.prepare(name, job)
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
        cls.places = {name: cls.places_of(name) for name in cls.jobs}
        cls.tell()

    @classmethod
    def prepare(cls, name, job):
        pass

    @classmethod
    def spoil(cls):
        raise NotImplementedError

    @classmethod
    def afterwards(cls):
        cls.settle()

    @classmethod
    def settle(cls, seconds=25):
        """Until nothing is on its way any more. Not an assertion: each test tells its own file's fate."""
        end = time.monotonic() + seconds * SLACK
        while cls.mount.status()["waiting"] and time.monotonic() < end:
            time.sleep(0.1)

    @classmethod
    def places_of(cls, name):
        """All the places that hold what the program wrote, the service as often as it does."""
        job = cls.jobs[name]
        found = [SERVICE] * cls.sandbox.hashes(cls.ids[name]).count(sha256_of(job.data))
        for entry in os.scandir(job.folder):
            state = attribute_or_none(entry.path, "state")
            if state in ("queued", "uploading", "waiting"):
                found.append(QUEUE)
            elif state == "local" and entry.stat().st_size > 0:
                found.append(SCRATCH)
        kept = cls.kept_folder(job)
        if os.path.isdir(kept):
            found += [FAILED] * sum(not n.endswith(".why.txt") for n in os.listdir(kept))
        return found or [NOWHERE]

    @classmethod
    def kept_folder(cls, job):
        return os.path.join(cls.mount.path, ".sessionfs", "failed", os.path.basename(job.folder))

    @classmethod
    def is_lost(cls, name):
        """Status 0, or a program that does not look, and yet the bytes are nowhere."""
        done, writer = cls.done[name], cls.jobs[name].writer
        return cls.places[name] == [NOWHERE] and not isinstance(done, AssertionError) and \
            not ((done.status != 0 or "Permission denied" in done.err) and (writer.cleans or cls.is_told_early(writer))) and not cls.is_skipped(writer)

    @classmethod
    def is_told_early(cls, writer):
        """It is refused before it has written a byte."""
        return False

    @classmethod
    def is_skipped(cls, writer):
        """It chooses to write nothing."""
        return False

    @classmethod
    def tell(cls):
        lost = sum(cls.is_lost(name) for name in cls.jobs)
        doubled = sum(len(p) > 1 for p in cls.places.values())
        hung = sum(isinstance(d, AssertionError) for d in cls.done.values())
        counts = ["%s %d" % (p, n) for p in (SERVICE, QUEUE, FAILED, SCRATCH, NOWHERE)
                  if (n := sum(p in found for found in cls.places.values()))]
        print("     %s: cases %d: %s; lost %d, doubled %d, hung %d" % (cls.fault, len(cls.jobs), ", ".join(counts), lost, doubled, hung),
              flush=True)

    def look(self, told=Ellipsis):
        job, done = self.jobs[self._testMethodName], self.done[self._testMethodName]
        if isinstance(done, AssertionError):
            raise done
        told = job.writer.told if told is Ellipsis else told
        if told is not None:
            self.assertEqual(told, done.status != 0, done)
        if job.writer.loses_source and done.status != 0:
            self.assertEqual(job.data, read(job.source), "the source is gone, and the program knew that it failed")
        self.assertEqual(1, len(self.places[self._testMethodName]), "in several places: %r, %r" % (self.places[self._testMethodName], done))
        self.assertFalse(self.is_lost(self._testMethodName), "lost: %r" % done)
        return job, done, self.places[self._testMethodName][0]

    def assert_kept(self, job, why):
        kept = self.kept_folder(job)
        self.assertEqual(job.data, read(os.path.join(kept, NAME)))
        self.assertIn(why, read(os.path.join(kept, NAME + ".why.txt")).decode())
        self.assertEqual([], os.listdir(self.dir), "it is in the session's folder as well")


def told_or_not(writer):
    return ("notices" if writer.told else "may not notice" if writer.told is None else "does not notice").replace(" ", "_")


class AServiceThatAnswersThemAll(AllAtOnce):
    """The less usual ones, side by side."""
    fault = "none, less usual writers"
    options = {"ttl": "10m"}
    notices = []

    @classmethod
    def spoil(cls):
        pass

    def check(self, writer):
        job, done, place = self.look(told=False)
        self.assertEqual(SERVICE, place, done)
        self.assert_one_document(NAME, job.data)
        self.assertEqual(not writer.loses_source, os.path.exists(job.source))


AServiceThatAnswersThemAll.add_tests("ends_as_exactly_one_document", AServiceThatAnswersThemAll.check, ODD_WRITERS)


class AServiceThatRefuses(AllAtOnce):
    """A refusal of every upload call."""
    fault = "refused at the last step"
    options = {"ttl": "10m", "naming": "session"}
    notices = [r"refus|422|400|could not be processed|unsupported|failed"]

    @classmethod
    def spoil(cls):
        status, body = cls.sandbox.refusal
        cls.sandbox.fault(method="POST", path=cls.sandbox.upload_path, status=status, times=0, body=body)

    def check(self, writer):
        job, done, place = self.look()
        self.assertEqual([], self.sandbox.documents(self.session))
        self.assertEqual(NOWHERE if writer.cleans else SCRATCH if writer.renames else FAILED, place)
        if place == SCRATCH:
            self.assertEqual([NAME + ".part"], os.listdir(self.dir))
            self.assertEqual(job.data, read(job.path + ".part"))
        elif place == FAILED:
            self.assert_kept(job, "The file could not be read.")
        else:
            self.assertEqual([], os.listdir(self.dir))


AServiceThatRefuses.add_tests(lambda w: told_or_not(w) + "_a_refusal_and_the_bytes_are_in_one_place", AServiceThatRefuses.check)


class AServiceThatIsBusy(AllAtOnce):
    """429 with a pause, to the first requests of all of them and to some later ones."""
    fault = "429, then fine"
    options = {"ttl": "10m", "naming": "session"}

    @classmethod
    def spoil(cls):
        for route, times in ((cls.sandbox.upload_writes[0], 12), (cls.sandbox.upload_writes[-1], 8)):
            cls.sandbox.fault(route=route, status=429, times=times, headers={"Retry-After": "1"}, body={"message": "Too Many Attempts."})

    def check(self, writer):
        job, done, place = self.look(told=False)
        self.assertEqual(SERVICE, place, done)
        self.assert_one_document(NAME, job.data)


AServiceThatIsBusy.add_tests("waits_while_the_service_is_busy_and_ends_as_one_document", AServiceThatIsBusy.check)


class AServiceThatIsAwayForAMoment(AllAtOnce):
    """Nobody listens for three seconds."""
    fault = "down for 3 s"
    options = {"ttl": "10m"}

    @classmethod
    def spoil(cls):
        cls.sandbox.control("POST", "/down", {"how": "refuse"})
        back = threading.Timer(3, cls.sandbox.control, ("POST", "/up"))
        back.daemon = True
        back.start()

    def check(self, writer):
        job, done, place = self.look(told=False)
        self.assertEqual(SERVICE, place, done)
        self.assert_one_document(NAME, job.data)


AServiceThatIsAwayForAMoment.add_tests("sits_out_three_seconds_and_ends_as_one_document", AServiceThatIsAwayForAMoment.check)


class AServiceThatIsDown(AllAtOnce):
    """Nobody listens, also not after the daemon was killed and mounted again; then the service comes back."""
    fault = "down for good, then back"
    options = {"ttl": "10m", "close_timeout": "2s"}
    notices = [r"refus|away|answer|connect|Connect|later|wait"]

    @classmethod
    def spoil(cls):
        cls.sandbox.control("POST", "/down", {"how": "refuse"})

    @classmethod
    def afterwards(cls):
        cls.meanwhile = {name: cls.places_of(name) for name in cls.jobs}
        time.sleep(1.2)  # a scratch file has its row a second after its close
        cls.mount.kill()
        cls.mount.start().names_seen(len(cls.ids))
        cls.after_kill = {name: cls.places_of(name) for name in cls.jobs if cls.meanwhile[name] != [NOWHERE]}
        cls.sandbox.control("POST", "/up")
        cls.mount.command("retry", "--all")
        cls.settle()

    def check(self, writer):
        job, done, place = self.look()
        name = self._testMethodName
        # The rename of a part file failed: what was to be renamed is still there.
        meanwhile = SCRATCH if writer.renames else NOWHERE if done.status != 0 and (writer.cleans or writer.told is None) else QUEUE
        if writer.told is None and self.meanwhile[name] != [NOWHERE]:
            meanwhile = QUEUE
        self.assertEqual([meanwhile], self.meanwhile[name])
        self.assertEqual([meanwhile], self.after_kill.get(name, [NOWHERE]))
        self.assertEqual(SERVICE if meanwhile == QUEUE else meanwhile, place)
        if place == SERVICE:
            self.assert_one_document(NAME, job.data)
        else:
            self.assertEqual([NAME + ".part"] if place == SCRATCH else [], os.listdir(self.dir))
            self.assertEqual([], self.sandbox.documents(self.session))


AServiceThatIsDown.add_tests(lambda w: told_or_not(w) + "_an_outage_and_nothing_is_lost_or_doubled", AServiceThatIsDown.check)


@unittest.skipUnless(shutil.which("mount"), "no mount")
class ADiskThatIsFull(AllAtOnce):
    """Not a byte of room for the spool."""
    fault = "spool full"
    room = 0
    options = {"ttl": "10m", "naming": "session"}
    size = 200_000

    @classmethod
    def before_mount(cls):
        cls.disk = cls.class_folder()
        done = run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", cls.disk])
        if done.status != 0:
            raise unittest.SkipTest("no tmpfs can be mounted: " + done.err)
        cls.options = {**cls.options, "state_dir": os.path.join(cls.disk, "state")}

    @classmethod
    def tearDownClass(cls):
        with contextlib.suppress(AssertionError):
            cls.mount.stop()
        run(["umount", "-l", cls.disk])
        super().tearDownClass()

    @classmethod
    def prepare(cls, name, job):
        if not job.writer.data:
            job.data = paper_bytes(size=cls.size)
            os.unlink(job.source)
            job.renew()
            job.pack()

    @classmethod
    def spoil(cls):
        with open(os.path.join(cls.disk, "filler"), "wb", buffering=0) as f:
            with contextlib.suppress(OSError):
                while True:
                    f.write(b"x" * 4096)
            f.truncate(f.tell() - cls.room)

    @classmethod
    def afterwards(cls):
        os.unlink(os.path.join(cls.disk, "filler"))
        cls.settle(30)

    @classmethod
    def is_told_early(cls, writer):
        return True

    def check(self, writer):
        job, done, place = self.look(told=None)
        # What a program is not told here it was told before its last command, or in a child nobody waits for.
        self.assertTrue(done.status != 0 or place == SERVICE or "No space left" in done.err, "%r %r" % (place, done))
        if place == SERVICE:
            self.assert_one_document(NAME, job.data)
        else:
            self.assertEqual([], self.sandbox.documents(self.session), "a part of it")
            self.assertIn(place, (FAILED, NOWHERE, SCRATCH))
            self.assertEqual(0, self.room and place == SCRATCH and not writer.renames)


ADiskThatIsFull.add_tests("hears_of_a_full_disk_and_no_part_of_the_file_is_sent", ADiskThatIsFull.check)


class ADiskThatIsNearlyFull(ADiskThatIsFull):
    """Room for a few of the files at a time."""
    fault = "spool nearly full"
    room = 1_500_000


class ANameThatExists(AllAtOnce):
    """A document of that name with other bytes, which this mount did not bring."""
    fault = "name exists already"
    options = {"ttl": "10m"}

    @classmethod
    def prepare(cls, name, job):
        job.before = paper_bytes()
        cls.sandbox.document(cls.ids[name], NAME, base64=base64.b64encode(job.before).decode())

    @classmethod
    def spoil(cls):
        cls.mount.command("refresh", cls.mount.path)
        for job in cls.jobs.values():
            wait_for(lambda job=job: os.listdir(job.folder) == [NAME], 10, "the document shows")

    @classmethod
    def is_told_early(cls, writer):
        return True

    @classmethod
    def is_skipped(cls, writer):
        return writer.name in ("cp -n", "cp -u", "cpio", "rsync --append")

    def check(self, writer):
        job, done, place = self.look(told=None if self.is_skipped(writer) or writer.name == "inherited descriptor" else True)
        self.assertEqual(SCRATCH if writer.renames else NOWHERE, place)
        self.assertEqual([sha256_of(job.before)], self.sandbox.hashes(self.session))
        self.assertEqual(sorted([NAME] + [NAME + ".part"] * (place == SCRATCH)), sorted(os.listdir(self.dir)))
        self.assertEqual(job.before, read(job.path))
        self.assertEqual(job.data, read(job.source))


ANameThatExists.add_tests("is_refused_or_skips_a_name_that_exists", ANameThatExists.check)


class Settling(SharedMount):
    """settle=: what is written in pieces is one document."""
    seconds = 5 if SLOW else 2
    pause = 2 if SLOW else 0.7
    options = {"settle": str(seconds), "naming": "session"}

    def test_three_appends_with_pauses_are_one_document(self):
        before = self.sandbox.last_request()
        pieces = [write(os.path.join(self.sources, "page %d" % i), paper_bytes()) for i in range(3)]
        path = os.path.join(self.dir, NAME)
        for i, piece in enumerate(pieces):
            if i:
                time.sleep(self.pause)
            self.assertEqual([], self.sandbox.writes(before), "sent before it had settled")
            done = run("cat '%s' >> '%s'" % (piece, path))
            self.assertEqual(0, done.status, done)
            self.assertLess(done.seconds, self.seconds, "its close waited for the upload")
        wait_for(lambda: self.sandbox.hashes(self.session), self.seconds + 10, "it has settled and is there")
        self.assert_one_document(NAME, b"".join(map(read, pieces)))
        self.assertEqual(self.sandbox.upload_writes, [r["route"] for r in self.sandbox.writes(before)])

    def test_a_piece_that_comes_after_it_was_sent_is_refused_and_the_document_stays(self):
        path = os.path.join(self.dir, NAME)
        data = paper_bytes()
        write(path, data)
        wait_for(lambda: self.sandbox.hashes(self.session), self.seconds + 10, "it has settled and is there")
        wait_for(lambda: attribute(path, "state") == self.sandbox.uploaded[1], 10, "its state is " + self.sandbox.uploaded[1])
        self.assertEqual(1, run("echo more >> '%s'" % path).status)
        self.assert_one_document(NAME, data)


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

    def test_what_one_of_two_descriptors_closed_early_is_superseded_by_the_whole(self):
        data = paper_bytes()
        fd = os.open(os.path.join(self.dir, NAME), os.O_WRONLY | os.O_CREAT)
        other = os.dup(fd)
        os.write(fd, data[:100])
        os.close(fd)
        os.write(other, data[100:])
        os.close(other)
        self.assert_one_document(NAME, data)

    def test_programs_that_make_documents_make_whole_ones(self):
        sample = os.path.join(os.path.dirname(HERE), "samples", "invoice")
        made = [(words, name) for program, words, name in (
            ("gs", ["gs", "-q", "-dBATCH", "-dNOPAUSE", "-sDEVICE=pdfwrite", "-o", "gs.pdf", sample + ".pdf"], "gs.pdf"),
            ("pdfunite", ["pdfunite", sample + ".pdf", sample + ".pdf", "united.pdf"], "united.pdf"),
            ("pdftocairo", ["pdftocairo", "-pdf", sample + ".pdf", "cairo.pdf"], "cairo.pdf"),
            ("pdftoppm", ["pdftoppm", "-png", "-r", "20", sample + ".pdf", "page"], "page-1.png"),
            ("convert", ["convert", "xc:red", "red.png"], "red.png"),
            ("zip", ["zip", "-q", "-b", self.sources, "a.docx", sample + ".pdf"], "a.docx"),
            ("split", ["split", "-b", "20000", "--additional-suffix=.pdf", sample + ".pdf", "piece"], "pieceab.pdf"),
            ("soffice", ["soffice", "--headless", "--convert-to", "pdf", sample + ".docx"], "invoice.pdf"),
        ) if shutil.which(program) and (SLOW or program != "soffice")]
        for words, name in made:
            done = run(words, cwd=self.dir, env=environment(home=self.sources))
            self.assertEqual(0, done.status, done)
            self.assertIn(name, os.listdir(self.dir), done)
        names = os.listdir(self.dir)
        self.assertEqual(sorted(sha256_of(os.path.join(self.dir, n)) for n in names), self.sandbox.hashes(self.session))

    def test_the_writers_time_is_kept(self):
        paper = self.paper()
        os.utime(paper, (1_500_000_000, 1_500_000_000))
        self.assertEqual(0, run(["cp", "-p", paper, self.dir]).status)
        self.assertEqual(1_500_000_000, int(os.stat(os.path.join(self.dir, NAME)).st_mtime))


if __name__ == "__main__":
    main()
