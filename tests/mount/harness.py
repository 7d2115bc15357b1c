"""What the mount tests stand on: a sandbox, a mount of it, programs with a time limit, and a runner that prints one line a
test. Nothing here knows how sessionfs works inside; it starts the two programs and looks at files, exit statuses and
the sandbox's request log.

A test that needs what this machine lacks is skipped, aloud; a file whose tests are all skipped ends with 77.

Environment: SESSIONFS_BUILD   the build directory (default: build)
             SESSIONFS_SERVICE raydocs or rossum: which service new_sandbox() is (default: raydocs)
             SESSIONFS_SLOW    1: the long versions too
             SESSIONFS_SLACK   times are multiplied by it (a sanitized build is slow)
             SESSIONFS_KEEP    1: leave the temporary folders for a look
"""

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.abspath(os.environ.get("SESSIONFS_BUILD") or os.path.join(ROOT, "build"))
SESSIONFS = os.path.join(BUILD, "fs", "sessionfs")
SANDBOX = os.path.join(BUILD, "tests", "sandbox", "sessionfs-sandbox")
SAMPLES = os.path.join(ROOT, "tests", "samples")
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
SFTP_SERVER = "/usr/lib/openssh/sftp-server"

SLACK = float(os.environ.get("SESSIONFS_SLACK") or 1)
SLOW = os.environ.get("SESSIONFS_SLOW") == "1"
SERVICE = os.environ.get("SESSIONFS_SERVICE") or "raydocs"
TEST_SECONDS = 150 * SLACK  # one test; past it everything it started is killed
TOKEN = "rd_live_test_token_0123456789abcdef"

# What a sanitizer writes, whatever the exit status then is.
SANITIZER = re.compile(r"ERROR: \w*Sanitizer|WARNING: ThreadSanitizer|runtime error:|AddressSanitizer:DEADLYSIGNAL")
# A line of the log at level error.
LOG_ERROR = re.compile(r"^error: ")


def missing():
    """Why no mount test can run here, or None."""
    if not os.path.exists(SESSIONFS) or not os.path.exists(SANDBOX):
        return "not built: %s" % BUILD
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse"
    if os.geteuid() != 0:
        return "only root can start these"
    if shutil.which("fusermount3") is None:
        return "no fusermount3"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as e:
        return "/dev/fuse: %s" % e.strerror
    return None


def needs(*programs):
    """Skips a test when one of the programs is not here."""
    for one in programs:
        if shutil.which(one) is None and not os.path.exists(one):
            return unittest.skip("no %s" % one)
    return lambda f: f


# --all means every mount of this user, and the tests that run beside this one have some: where the command looks there is only $0.
ALONE = """grep ' - fuse.sessionfs ' /proc/self/mountinfo | while read -r _ _ _ _ at _; do [ "$at" = "$0" ] || umount -l "$at"; done
exec "$@" """


def has_namespaces():
    """May a command have a mount namespace of its own here? An ordinary user's may not, nor one in a bare tree."""
    try:
        return subprocess.run(["unshare", "--mount", "true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


HAS_NAMESPACES = has_namespaces()

# Who is started in the background of a script ignores it, and so would each program from here.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

slow = unittest.skipUnless(SLOW, "SESSIONFS_SLOW=1 runs it")


# ---- programs ---------------------------------------------------------------------------------------------------

class Done:
    """A program that has ended."""

    def __init__(self, command, status, out, err, seconds):
        self.command, self.status, self.out, self.err, self.seconds = command, status, out, err, seconds

    def __repr__(self):
        return "%s\n  status %d after %.1f s\n  out: %s\n  err: %s" % (
            self.command, self.status, self.seconds, self.out[-2000:], self.err[-2000:])


class Hung(AssertionError):
    pass


def environment(extra=None, home="/nonexistent"):
    """Of every program started: nothing of the caller's account, but what sanitizers are told."""
    env = {k: v for k, v in os.environ.items() if k in ("PATH", "ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS",
                                                        "LSAN_OPTIONS", "LD_LIBRARY_PATH", "TZ")}
    env.update(HOME=home, LANG="C.UTF-8", LC_ALL="C.UTF-8", GIO_USE_VFS="local", GSETTINGS_BACKEND="memory")
    env.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    env.update(extra or {})
    return env


def begin(command, env=None, cwd="/", stdin=subprocess.DEVNULL, **more):
    """Starts a list of words, or a text for bash, in a process group of its own."""
    words = ["bash", "-c", command] if isinstance(command, str) else command
    return subprocess.Popen(words, env=env or environment(), cwd=cwd, stdin=stdin, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True, **more)


def finish(process, seconds=60, command="", data=None):
    """Waits for what begin() started; a program that takes longer is killed, and the test fails."""
    began = time.monotonic()
    try:
        out, err = process.communicate(data, timeout=seconds * SLACK)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise Hung("still running after %g s: %s\n%s" % (seconds * SLACK, command or process.args,
                                                         err.decode(errors="replace")[-2000:])) from None
    return Done(command or process.args, process.returncode, out.decode(errors="replace"),
                err.decode(errors="replace"), time.monotonic() - began)


def run(command, seconds=60, env=None, cwd="/", data=None, **more):
    process = begin(command, env, cwd, subprocess.PIPE if data is not None else subprocess.DEVNULL, **more)
    return finish(process, seconds, command, data)


def wait_for(what, seconds, reason):
    """Until what() is true; returns it."""
    end = time.monotonic() + seconds * SLACK
    while True:
        got = what()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError("after %g s still not so: %s" % (seconds * SLACK, reason))
        time.sleep(0.03)


def processes_of(text):
    """Ids of the processes whose command line has this text, but ours."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open("/proc/%s/cmdline" % pid, "rb") as f:
                if text.encode() in f.read() and int(pid) != os.getpid():
                    found.append(int(pid))
    return found


def mounts_under(folder):
    with open("/proc/self/mountinfo") as f:
        return [line.split()[4] for line in f if line.split()[4].startswith(folder)]


# ---- files ------------------------------------------------------------------------------------------------------

def sha256_of(path_or_bytes):
    if isinstance(path_or_bytes, bytes):
        return hashlib.sha256(path_or_bytes).hexdigest()
    h = hashlib.sha256()
    with open(path_or_bytes, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)
    return path


def attribute(path, name):
    """user.sessionfs.NAME as text, or None where there is none."""
    try:
        return os.getxattr(path, "user.sessionfs." + name).decode(errors="replace")
    except OSError as e:
        if e.errno == errno.ENODATA:
            return None
        raise


_made = 0


def paper_bytes(sample="invoice.pdf", size=None):
    """A sample made unlike any other by a line at its end; with size, that many bytes."""
    global _made
    _made += 1
    mark = b"\n%% %d.%d.%d\n" % (os.getpid(), _made, time.monotonic_ns())
    data = read(os.path.join(SAMPLES, sample))
    if size is not None:
        data = (data + random.Random(_made).randbytes(max(0, size - len(data) - len(mark))))[:max(0, size - len(mark))]
    return data + mark


# ---- the sandbox ------------------------------------------------------------------------------------------------

class Sandbox:
    """The service, with a workspace, a template and a token that may do everything.

    What the tests of every service say of it differs in these words alone."""
    service = "raydocs"
    session_option = "session"
    lacks = ()                                        # options of another service
    upload_writes = ["sign", "put", "upload"]         # the requests by which a document comes, in order
    uploaded = ("uploaded", "stored")                 # status and state of a document that rests
    upload_path = "/documents/upload$"
    refusal = 422, {"message": "The file could not be read.", "errors": {"file": ["The file could not be read."]}}
    gives_equal_bytes_one_document = True

    def __init__(self, folder, *arguments):
        self.folder = folder
        self.state = os.path.join(folder, "service")
        self.log_path = os.path.join(folder, "sandbox.log")
        self.arguments = arguments
        self.ports = []
        self.process = None
        os.makedirs(self.state, exist_ok=True)
        self.start()
        self.seed()

    def seed(self):
        self.workspace = self.control("POST", "/workspace", {"name": "Accounts payable"})["id"]
        self.template = self.control("POST", "/template", {"name": "Supplier bills", "workspace": self.workspace})["id"]
        self.control("POST", "/token", {"token": TOKEN, "abilities": "*"})

    def start(self):
        ports_file = os.path.join(self.folder, "ports")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(ports_file)
        log = open(self.log_path, "ab")
        self.process = subprocess.Popen(
            [SANDBOX, "--state", self.state, "--rate", "off", "--ports-file", ports_file, *self.ports, *self.arguments],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment())
        log.close()

        def ports():
            if self.process.poll() is not None:
                raise AssertionError("the sandbox ended: " + read(self.log_path).decode(errors="replace")[-2000:])
            try:
                found = dict(line.split("=", 1) for line in read(ports_file).decode().split("\n") if "=" in line)
            except FileNotFoundError:
                return None
            return found if len(found) >= 7 else None
        urls = wait_for(ports, 10, "the sandbox names its ports")
        self.url, self.storage_url, self.control_url = urls["API_URL"], urls["STORAGE_URL"], urls["CONTROL_URL"]
        self.rossum_url = urls["ROSSUM_URL"]
        self.ca_file = urls.get("CA_FILE")
        port = [re.search(r":(\d+)", u).group(1) for u in (self.url, self.storage_url, self.control_url, self.rossum_url)]
        self.ports = ["--port", port[0], "--storage-port", port[1], "--control-port", port[2], "--rossum-port", port[3]]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20 * SLACK)
            except subprocess.TimeoutExpired:
                self.kill()
        return read(self.log_path).decode(errors="replace")

    def control(self, method, path, body=None):
        """body: an object, or bytes that are sent as they are."""
        data = body if isinstance(body, bytes) else None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.control_url + path, method=method, data=data,
                                         headers={"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30 * SLACK) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as e:
            raise AssertionError("sandbox %s %s %r: %d %s" % (method, path, body, e.code, e.read()[:500])) from None

    def set(self, **switches):
        return self.control("POST", "/set", {k.replace("__", "."): v for k, v in switches.items()})

    def session(self, name, **fields):
        return self.control("POST", "/session", {"name": name, "template": self.template, **fields})["id"]

    def document(self, session, filename, **fields):
        return self.control("POST", "/document", {"session": session, "filename": filename, **fields})

    def documents(self, session):
        """What the service has in a session."""
        return self.control("GET", "/state?session=" + session)["sessions"][0]["documents"]

    def hashes(self, session):
        return sorted(d["sha256"] for d in self.documents(session))

    def detach(self, session, document):
        self.control("POST", "/detach", {"session": session, "document": document})

    def count_all(self):
        """Documents, whatever became of them."""
        return self.control("GET", "/state?documents=no")["document_count"]

    def fault(self, **rule):
        return self.control("POST", "/fault", rule)

    def clear_faults(self):
        return self.control("POST", "/faults/clear")

    def last_request(self):
        return self.control("GET", "/requests?limit=1")["last"]

    def requests(self, since=0):
        return self.control("GET", "/requests?since=%d&limit=100000" % since)["requests"]

    def writes(self, since=0):
        """Requests that change or send something, as "METHOD route"."""
        return [r for r in self.requests(since) if r["method"] not in ("GET", "HEAD")]


class RossumSandbox(Sandbox):
    """The second service: a session is a queue, a document an annotation."""
    service = "rossum"
    session_option = "queue"
    lacks = ("naming", "template")
    upload_writes = ["rossum_upload"]
    uploaded = ("to_review", "ready")
    upload_path = "/uploads$"
    refusal = 400, {"detail": "The file could not be read.", "code": "bad_request"}
    gives_equal_bytes_one_document = False
    HIDDEN = ("created", "split", "deleted", "purged")

    def seed(self):
        self.workspace = self.control("POST", "/rossum/workspace", {"name": "Accounts payable"})["id"]
        self.control("POST", "/rossum/user", {"username": "ann", "password": "correct horse", "queues": "all"})
        self.control("POST", "/rossum/token", {"token": TOKEN, "user": "ann"})
        self.set(rossum__task_ms=20, rossum__create_ms=20, rossum__import_ms=50)

    def start(self):
        super().start()
        self.url = self.rossum_url

    def session(self, name, **fields):
        return str(self.control("POST", "/rossum/queue", {"name": name, "workspace": self.workspace, **fields})["id"])

    def document(self, session, filename, **fields):
        return self.control("POST", "/rossum/annotation", {"queue": int(session), "filename": filename, **fields})

    def annotations(self, session):
        """With those that are not to be shown."""
        queues = self.control("GET", "/state")["rossum"]["queues"]
        return next(q for q in queues if q["id"] == str(session))["annotations"]

    def documents(self, session):
        return [a for a in self.annotations(session) if a["visible"] and a["status"] not in self.HIDDEN]

    def detach(self, session, document):
        self.control("POST", "/rossum/annotation", {"id": int(document), "status": "deleted"})

    def count_all(self):
        return sum(q["annotation_count"] for q in self.control("GET", "/state")["rossum"]["queues"])


SANDBOXES = {"raydocs": Sandbox, "rossum": RossumSandbox}


# ---- the mount --------------------------------------------------------------------------------------------------

class Mount:
    """One `sessionfs -f`. Everything it keeps lies in a folder of its own, and so outlives stop() and kill()."""

    def __init__(self, sandbox, folder, sessions=(), **options):
        self.sandbox, self.folder = sandbox, folder
        self.path = os.path.join(folder, "mnt")
        self.log_path = os.path.join(folder, "mount.log")
        self.config_home = os.path.join(folder, "config")
        self.token_file = os.path.join(folder, "token")
        self.process = None
        self.sessions = list(sessions)
        self.options = {"url": sandbox.url, "service": sandbox.service, "token_file": self.token_file,
                        "state_dir": os.path.join(folder, "state"), "cache_dir": os.path.join(folder, "cache"),
                        "rate": "off", "log": "info", **{k: v for k, v in options.items() if k not in sandbox.lacks}}
        os.makedirs(self.path, exist_ok=True)
        os.makedirs(os.path.join(self.config_home, "sessionfs"), exist_ok=True)
        self.write_token(TOKEN)
        self.write_config()

    def write_token(self, token):
        with open(os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.write(token + "\n")

    def write_config(self):
        with open(os.path.join(self.config_home, "sessionfs", "config"), "w") as f:
            f.write("[test]\n")
            for key, value in self.options.items():
                if value is not None:
                    f.write("%s = %s\n" % (key, value))
            for session in self.sessions:
                f.write("%s = %s\n" % (self.sandbox.session_option, session))

    def environment(self):
        return environment({"XDG_CONFIG_HOME": self.config_home, "XDG_RUNTIME_DIR": self.folder}, home=self.folder)

    def start(self, *more, wait=True):
        log = open(self.log_path, "ab")
        self.process = subprocess.Popen([SESSIONFS, "test", self.path, "-f", *more], stdin=subprocess.DEVNULL, stdout=log,
                                        stderr=log, start_new_session=True, env=self.environment(), cwd="/")
        log.close()
        if wait:
            wait_for(self.is_up, 15, "mounted")
        return self

    def is_up(self):
        if self.process.poll() is not None:
            raise AssertionError("sessionfs ended with %d: %s" % (self.process.returncode, self.log()[-3000:]))
        return self.path in mounts_under(self.path)

    def names_seen(self, count):
        """Waits until the root shows `count` folders."""
        wait_for(lambda: len(self.folders()) >= count, 20, "%d folders in the root" % count)
        return self

    def folders(self):
        return [e.name for e in os.scandir(self.path) if e.is_dir(follow_symlinks=False)]

    def command(self, *words, seconds=30, data=None):
        """`sessionfs WORDS` with this mount's configuration."""
        alone = ["unshare", "--mount", "bash", "-c", ALONE, self.path] if "--all" in words and HAS_NAMESPACES else []
        return run([*alone, SESSIONFS, *words], seconds, env=self.environment(), data=data)

    def status(self):
        done = self.command("status", "--json", self.path)
        return json.loads(done.out)

    def log(self):
        return read(self.log_path).decode(errors="replace") if os.path.exists(self.log_path) else ""

    def unmount(self):
        return run(["fusermount3", "-u", self.path], 20)

    def stop(self, seconds=25):
        """A clean end; how sessionfs ended."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            done = self.unmount()
            if done.status != 0 and self.path in mounts_under(self.path):
                self.kill()
                raise AssertionError("cannot unmount: %r" % done)
            try:
                self.process.wait(seconds * SLACK)
            except subprocess.TimeoutExpired:
                self.kill()
                raise Hung("sessionfs still runs %g s after fusermount3 -u\n%s" % (seconds * SLACK, self.log()[-2000:])) from None
        status, self.process = self.process.returncode, None
        return status

    def kill(self):
        """As a crash would: SIGKILL, and the dead mount taken away."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()
            self.process = None
        if self.path in mounts_under(self.path):
            run(["fusermount3", "-u", "-z", self.path], 20)


# ---- tests ------------------------------------------------------------------------------------------------------

class MountCase(unittest.TestCase):
    """Has a temporary folder, and whatever a test starts in it is ended with it. The logs of all mounts are searched
    for errors nobody asked for: a test that expects some says so with self.expects()."""

    @classmethod
    def setUpClass(cls):
        why = missing()
        if why is not None:
            raise unittest.SkipTest(why)
        cls.kept = []
        cls.expected = []

    def setUp(self):
        self.kept = []
        self.expected = []
        self.overdue = False
        self.watchdog = threading.Timer(TEST_SECONDS, self.give_up)
        self.watchdog.daemon = True
        self.watchdog.start()
        self.marks = [(m, len(m.log())) for m in type(self).kept if isinstance(m, Mount)]

    def tearDown(self):
        self.watchdog.cancel()
        type(self).end(self.kept, self.expected + type(self).expected)
        for mount, mark in self.marks:
            check_log(mount.log()[mark:], self.expected + type(self).expected)
        if self.overdue:
            raise Hung("took over %g s" % TEST_SECONDS)

    @classmethod
    def tearDownClass(cls):
        cls.end(cls.kept, None)

    def give_up(self):
        """A system call into a mount that never answers ends when its daemon does."""
        self.overdue = True
        for one in self.kept + type(self).kept:
            if isinstance(one, (Mount, Sandbox)) and one.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    one.process.kill()

    @classmethod
    def end(cls, kept, expected):
        wrong = []
        folders = [one for one in kept if isinstance(one, str)]
        for one in reversed(kept):
            try:
                if isinstance(one, Mount):
                    status = one.stop()
                    if status != 0:
                        wrong.append("sessionfs ended with %d" % status)
                    if expected is not None:
                        check_log(one.log(), expected)
                    elif SANITIZER.search(one.log()):
                        wrong.append(one.log()[-4000:])
                elif isinstance(one, Sandbox):
                    log = one.stop()
                    if SANITIZER.search(log):
                        wrong.append("sandbox: " + log[-3000:])
                elif isinstance(one, subprocess.Popen) and one.poll() is None:
                    os.killpg(one.pid, signal.SIGKILL)
                    one.communicate()
            except AssertionError as e:
                wrong.append(str(e))
        for folder in folders:
            for left in mounts_under(folder):
                wrong.append("left mounted: %s" % left)
                run(["fusermount3", "-u", "-z", left], 20)
            for pid in processes_of(folder):
                wrong.append("left running: %d" % pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if os.environ.get("SESSIONFS_KEEP") != "1":
                shutil.rmtree(folder, ignore_errors=True)
        kept.clear()
        if wrong:
            raise AssertionError("\n".join(wrong))

    @classmethod
    def class_folder(cls):
        cls.kept.append(tempfile.mkdtemp(prefix="sessionfs-test-"))
        return cls.kept[-1]

    def new_folder(self):
        self.kept.append(tempfile.mkdtemp(prefix="sessionfs-test-"))
        return self.kept[-1]

    def new_sandbox(self, folder, *arguments):
        self.kept.append(SANDBOXES[SERVICE](folder, *arguments))
        return self.kept[-1]

    def new_mount(self, sandbox, folder, sessions=(), **options):
        """Not started yet."""
        self.kept.append(Mount(sandbox, folder, sessions, **options))
        return self.kept[-1]

    def expects(self, *patterns):
        """Lines of level error that match one of these are no fault."""
        self.expected.extend(patterns)

    def refused(self, number, call, *arguments, **named):
        """The call fails with this errno."""
        try:
            call(*arguments, **named)
        except OSError as e:
            self.assertEqual(errno.errorcode[number], errno.errorcode.get(e.errno), "%s%r" % (call.__name__, arguments))
            return
        self.fail("%s%r succeeded, %s was to come" % (call.__name__, arguments, errno.errorcode[number]))


class SharedMount(MountCase):
    """One sandbox and one mount for all tests of the class, and a session of its own for each test: self.session (its
    id) and self.dir (its folder)."""
    options = {}
    arguments = ()
    extra_sessions = ()

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        try:
            folder = cls.class_folder()
            cls.sandbox = SANDBOXES[SERVICE](folder, *cls.arguments)
            cls.kept.append(cls.sandbox)
            names = unittest.defaultTestLoader.getTestCaseNames(cls)
            cls.ids = {name: cls.sandbox.session(folder_name(name)) for name in [*names, *cls.extra_sessions]}
            cls.before_mount()
            cls.mount = Mount(cls.sandbox, folder, cls.ids.values(), **cls.options)
            cls.kept.append(cls.mount)
            cls.mount.start().names_seen(len(cls.ids))
            cls.after_mount()
        except BaseException:
            with contextlib.suppress(AssertionError):
                cls.end(cls.kept, None)
            raise

    @classmethod
    def before_mount(cls):
        pass

    @classmethod
    def after_mount(cls):
        pass

    def setUp(self):
        super().setUp()
        self.session = self.ids[self._testMethodName]
        self.dir = self.folder_of(self._testMethodName)
        self.sources = self.new_folder()

    def folder_of(self, name):
        return os.path.join(self.mount.path, folder_name(name))

    def paper(self, name="invoice.pdf", sample="invoice.pdf", size=None):
        """A new file outside the mount."""
        return write(os.path.join(self.sources, name), paper_bytes(sample, size))

    def assert_one_document(self, name, data, session=None, folder=None):
        """In the session, at the service and in the listing alike: this document and nothing else."""
        session, folder = session or self.session, folder or self.dir
        self.assertEqual([sha256_of(data)], self.sandbox.hashes(session))
        self.assertEqual([name], os.listdir(folder))
        self.assertEqual(data, read(os.path.join(folder, name)))


def folder_name(test_name):
    return test_name[len("test_"):].replace("_", " ") if test_name.startswith("test_") else test_name


def check_log(text, expected):
    wrong = [line for line in text.split("\n") if LOG_ERROR.search(line) and not any(re.search(p, line) for p in expected)]
    if SANITIZER.search(text):
        wrong.append(text[-6000:])
    if wrong:
        raise AssertionError("in the log:\n" + "\n".join(wrong[:20]))


# ---- the runner -------------------------------------------------------------------------------------------------

class LineResult(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.passed = 0

    def line(self, word, test, more=""):
        took = time.monotonic() - getattr(self, "began", time.monotonic())
        name = test.id().replace("__main__.", "") if hasattr(test, "id") else str(test)
        print("%-4s %s (%.1f s)%s" % (word, name, took, more), flush=True)

    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1
        self.line("ok", test)

    def fault(self, test, error):
        frames = [f for f in traceback.extract_tb(error[2]) if "unittest" not in f.filename]
        text = "".join(traceback.format_list(frames)) + "".join(traceback.format_exception_only(*error[:2]))
        self.line("FAIL", test, "\n" + "\n".join("     " + line for line in text.rstrip().split("\n")))

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.fault(test, error)

    def addError(self, test, error):
        super().addError(test, error)
        self.fault(test, error)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.line("skip", test, ": " + reason)

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None:
            self.fault(subtest, error)


def main():
    """Runs the tests of the file that calls it; arguments are parts of the names wanted."""
    def wanted(suite):
        for one in suite:
            if isinstance(one, unittest.TestSuite):
                yield from wanted(one)
            elif len(sys.argv) < 2 or any(a in one.id() for a in sys.argv[1:]):
                yield one
    result = LineResult()
    tests = unittest.TestSuite(wanted(unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])))
    tests.run(result)
    failed = len(result.failures) + len(result.errors)
    print("%d passed, %d failed, %d skipped" % (result.passed, failed, len(result.skipped)))
    sys.stdout.flush()
    # Not sys.exit(): a thread that hangs in a system call must not keep us.
    os._exit(1 if failed else 77 if result.passed == 0 else 0)
