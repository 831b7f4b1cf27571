"""
A host in a temporary directory: clocks, systemd and runtimes that behave, and are strict.
"""

import json
import socketserver
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from deploy.host.__main__ import handle
from deploy.host.layout import SLOTS, Layout, unit
from deploy.host.system import Clock, ProgramResult, Runner, System

BOOT = "11111111-2222-3333-4444-555555555555"
INVOCATION = "0123456789abcdef0123456789abcdef"
BUNDLE = "a" * 64
OTHER = "b" * 64


class FakeClock(Clock):
    """
    Moves only when somebody sleeps; `on_sleep` is told.
    """

    def __init__(self, on_sleep=lambda: None):
        self.wall, self.steady = 1_750_000_000.0, 5_000.0
        self.on_sleep = on_sleep

    def wall_s(self):
        return self.wall

    def steady_s(self):
        return self.steady

    def sleep(self, seconds):
        self.pass_s(seconds)
        self.on_sleep()

    def pass_s(self, seconds):
        self.wall += seconds
        self.steady += seconds


class FakeUnit:
    """
    Attributes:
        starts: What each start leads to: "ready", "slow" (ready after 2 looks), "exit" (fails
            for good), "crash" (systemd starts it again), "hang" (never ready), "skip" (a
            condition fails).
        stops: "fast", "slow" (after 2 looks) or "hang".
    """

    def __init__(self):
        self.starts, self.stops = "ready", "fast"
        self.active, self.sub, self.result, self.status = "inactive", "dead", "success", 0
        self.restarts = 0
        self.enabled = False
        self.cpu_weight = 100
        self.looks = 0  # until what was queued has happened
        self.queued = None
        self.was_started = False

    def start(self):
        if self.active == "active":
            return
        self.was_started = self.starts != "skip"
        self.queued, self.looks = "start", 2 if self.starts == "slow" else 0
        self.active, self.sub = "activating", "start"
        if self.starts == "skip":
            self.active, self.sub = "inactive", "dead"

    def stop(self):
        self.queued, self.looks = "stop", 2 if self.stops == "slow" else 0
        if self.active in ("active", "activating"):
            self.active, self.sub = "deactivating", "stop-sigterm"

    def look(self):
        if self.queued and self.looks <= 0:
            getattr(self, f"_{self.queued}")()
        self.looks -= 1

    def _start(self):
        ends = {
            "ready": ("active", "running"),
            "slow": ("active", "running"),
            "exit": ("failed", "failed"),
            "crash": ("activating", "auto-restart"),
            "hang": ("activating", "start"),
            "skip": ("inactive", "dead"),
        }
        self.active, self.sub = ends[self.starts]
        if self.starts in ("exit", "crash"):
            self.result, self.status = "exit-code", 78
        if self.starts != "hang":
            self.queued = None

    def _stop(self):
        if self.stops != "hang":
            self.active, self.sub, self.queued = "inactive", "dead", None


class FakeRunner(Runner):
    """
    systemctl and journalctl of pretended units; a few real programs; nothing else.
    """

    def __init__(self):
        self.units = {unit(slot): FakeUnit() for slot in SLOTS}
        self.log = ["Loading the model", "ValueError: no such tensor"]
        self.calls = []
        self.real = {"ssh-keygen"}
        self.before = lambda argv: None

    def run(self, argv, *, timeout_s, stdin=b"", env=None):
        self.calls.append(list(argv))
        self.before(argv)
        if argv[0] == "systemctl":
            return self._systemctl(*argv[1:])
        if argv[0] == "journalctl":
            return self._journalctl(*argv[1:])
        if argv[0] in self.real or any(argv[0].startswith(f"{r}/") for r in self.real):
            return super().run(argv, timeout_s=timeout_s, stdin=stdin, env=env)
        raise AssertionError(f"nobody announced {argv}")

    def _journalctl(self, *words):
        assert words[:5] == ("--quiet", "--no-pager", "--output", "cat", "--lines")
        last, about = int(words[5]), words[6:]
        if about[0] == "--unit":
            assert about[1] in self.units
            assert about[2] == "--since"
            assert about[3].startswith("@")
            lines = ["Starting it...", *self.log, "Failed to start it."]
        else:
            assert about == (f"_SYSTEMD_INVOCATION_ID={INVOCATION}",)
            lines = self.log
        return ProgramResult(0, "".join(f"{line}\n" for line in lines[-last:]), "")

    def _systemctl(self, verb, *words):
        names = [word for word in words if not word.startswith("-") and "=" not in word]
        options = {word for word in words if word.startswith("-")}
        for name in names:
            if name not in self.units:
                return ProgramResult(4, "", f"Unit {name} could not be found.\n")
        found = [self.units[name] for name in names]
        if verb == "show":
            return ProgramResult(0, "\n".join(_show(n, self.units[n]) for n in names), "")
        if verb in ("start", "stop"):
            assert options == {"--no-block"}
            for each in found:
                getattr(each, verb)()
        elif verb in ("enable", "disable"):
            assert options == {"--quiet"}
            for each in found:
                each.enabled = verb == "enable"
        elif verb == "set-property":
            assert options == {"--runtime"}
            key, _, value = words[-1].partition("=")
            assert key == "CPUWeight"
            for each in found:
                each.cpu_weight = int(value)
        elif verb == "reset-failed":
            for each in found:
                each.restarts = 0
                if each.active == "failed":
                    each.active, each.sub, each.result, each.status = (
                        "inactive",
                        "dead",
                        "success",
                        0,
                    )
        else:
            raise AssertionError(f"nobody announced systemctl {verb} {words}")
        return ProgramResult(0, "", "")


def _show(name, seen):
    seen.look()
    job = "17" if seen.queued else "0"
    return (
        f"Id={name}\nLoadState=loaded\nActiveState={seen.active}\nSubState={seen.sub}\n"
        f"Result={seen.result}\nNRestarts={seen.restarts}\nExecMainStatus={seen.status}\n"
        f"Job={job}\nUnitFileState={'enabled' if seen.enabled else 'disabled'}\n"
        f"InvocationID={INVOCATION if seen.was_started else ''}\n"
    )


class Host:
    """
    One host under a root of its own, and a caller that talks to it as the controller does.
    """

    def __init__(self, root, clock=None):
        self.root = root
        self.layout = Layout(str(root))
        self.clock = clock or FakeClock()
        self.runner = FakeRunner()
        self.system = System(self.layout, self.runner, self.clock)
        self.fence = None
        self.release = "r1"
        self.reboot(BOOT)
        self.layout.state.mkdir(parents=True)
        for slot in SLOTS:
            (self.layout.run / slot).mkdir(parents=True)

    def reboot(self, boot_id):
        self.layout.boot_id.parent.mkdir(parents=True, exist_ok=True)
        self.layout.boot_id.write_text(f"{boot_id}\n")

    def call(self, verb, **args):
        """
        Return the result of *verb*; an error is a Refused.
        """
        answered = self.answer(verb, args)
        if not answered["ok"]:
            raise Refused(answered["error"])
        return answered["result"]

    def answer(self, verb, args):
        document = {"fence": self.fence, "release": self.release, "actor": "ann", "args": args}
        line = handle(self.system, verb, json.dumps(document))
        assert "\n" not in line
        return json.loads(line)

    def lease(self, ttl_s=30.0, owner="ann@desk:1"):
        self.fence = self.call("lease.acquire", owner=owner, ttl_s=ttl_s)["fence"]
        return self.fence

    def stage(self, bundle=BUNDLE, version="v1", golden=()):
        """
        Put a release in place, as if it had been staged.
        """
        directory = self.layout.release(bundle)
        directory.mkdir(parents=True)
        manifest = {"version": version, "model_name": "tiny"}
        (directory / "manifest.json").write_text(json.dumps(manifest))
        (directory / "golden.jsonl").write_text("".join(json.dumps(g) + "\n" for g in golden))

    def journal(self):
        return [json.loads(line) for line in self.layout.journal.read_text().splitlines()]


class Refused(Exception):
    def __init__(self, error):
        super().__init__(f"{error['kind']}: {error['what']} ({error['why']})")
        self.kind, self.what = error["kind"], error["what"]
        self.why, self.fix = error["why"], error["fix"]


class FakeRuntime:
    """
    A runtime on a Unix socket: ready, counting, answering; `gate` holds answers back.
    """

    def __init__(self, path, name):
        self.name = name
        self.is_ready = True
        self.metrics = ""
        self.answers = {}  # prompt to text
        self.fails_with = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.seen = []
        runtime = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20

            def address_string(self):
                return "unix"

            def log_message(self, *_):
                pass

            def do_GET(self):
                if self.path == "/readyz":
                    return self._answer(200 if runtime.is_ready else 503, b"")
                if self.path == "/metrics" and runtime.metrics is not None:
                    return self._answer(200, runtime.metrics.encode())
                return self._answer(404, b"")

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                runtime.seen.append((body, dict(self.headers)))
                runtime.entered.set()
                assert runtime.gate.wait(20)
                if runtime.fails_with:
                    return self._answer(runtime.fails_with, b'{"error": {"code": "broken"}}')
                text = runtime.answers.get(body.get("prompt"), runtime.name)
                return self._answer(200, json.dumps({"text": text}).encode())

            def _answer(self, status, body):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_):
                pass  # a client that goes away is no news

        self._server = Server(str(path), Handler)
        path.chmod(0o666)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()

    def close(self):
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def short_directory():
    """
    Yield a temporary directory whose sockets fit into the 108 bytes of an address.
    """
    with tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp") as name:
        yield Path(name)
