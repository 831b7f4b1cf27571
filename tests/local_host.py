"""
The real host program over a temporary root.  Only the operating system is faked, strictly.

`LocalTransport` runs verbs in this process; `FakeSystem` stands for systemd, HAProxy, the runtimes
behind their Unix sockets, the clocks and the disk.  An operation that it does not know is an
AssertionError.  All of it may be used from several threads.
"""

import fcntl
import functools
import json
import os
import shutil
import sys
import tempfile
import threading
import types
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from deploy.errors import TransportError
from deploy.host import layout as paths
from deploy.host.__main__ import handle
from deploy.host.bundle.sandbox import UNIT as SANDBOX_UNIT
from deploy.host.deadman.self_test import PATHS, mark_of
from deploy.host.files import link_atomic
from deploy.host.journal import Journal
from deploy.host.layout import (
    BACKEND,
    DEADMAN_BOOT,
    DEADMAN_TIMER,
    DOOR_BACKEND,
    DOOR_SERVER,
    HAPROXY_UNIT,
    PACKAGE_UNITS,
    SLOTS,
    Layout,
    slot_mount,
    unit,
)
from deploy.host.protocol import REQUESTS, ErrorKind, GoodRecord, HostError
from deploy.host.records import Result
from deploy.host.rpc import encode_error, parse_request
from deploy.host.slots.haproxy import parse_servers_state
from deploy.host.slots.slot import version_of
from deploy.host.sockets import HttpAnswer
from deploy.host.system import Account, ProgramResult, System
from deploy.transport.base import Completed

BOOT = "11111111-2222-3333-4444-555555555555"
INVOCATION = "0123456789abcdef0123456789abcdef"
GOLDEN = ({"prompt": "sun", "max_tokens": 4, "expected": "rises"},)
RECORDED = Path(__file__).parent / "unit" / "deploy" / "host" / "slots" / "recorded"

PUBLIC_PORT = 8000
CHECK_INTERVAL_S = 0.5  # of HAProxy, as templates/haproxy.cfg.j2 has it; fall 2, rise 1


def short_directory():
    """
    Return a temporary directory in memory; its sockets fit into the 108 bytes of an address.
    """
    base = "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"
    return tempfile.TemporaryDirectory(prefix="sw-", dir=base)


class FakeClock:
    """
    Moves only when a verb sleeps or a test moves it.

    Attributes:
        on_sleep: Called after each sleep.
    """

    def __init__(self, on_sleep=lambda: None):
        self.wall, self.steady = 1_750_000_000.0, 5_000.0
        self.on_sleep = on_sleep
        self._lock = threading.Lock()

    def pass_s(self, seconds):
        with self._lock:
            self.wall += seconds
            self.steady += seconds


# -- systemd


class FakeUnit:
    """
    Attributes:
        starts: What a start leads to: "ready", "slow" (ready after 2 looks), "exit" (fails for
            good), "crash" (systemd restarts it), "hang" (never ready), "skip" (a condition fails).
        stops: "fast", "slow" (after 2 looks), "hang" (until it is killed), "immortal" (for ever)
            or "forks" (as systemd ends it, it leaves processes behind until it is killed).
        tasks: Processes in its control group.
        is_masked: systemd was told never to start it.
    """

    def __init__(self):
        self.is_masked = False
        self.starts, self.stops = "ready", "fast"
        self.active, self.sub, self.result, self.status = "inactive", "dead", "success", 0
        self.restarts = self.tasks = 0
        self.enabled = False
        self.cpu_weight = 100
        self.looks = 0  # left until the queued job has ended
        self.queued = None
        self.was_started = False

    def run(self):
        """
        Run, enabled, as if started long ago.
        """
        self.active, self.sub, self.enabled, self.was_started = "active", "running", True, True

    def fail(self):
        """
        End with an error that systemd does not restart.
        """
        self.active, self.sub, self.result, self.status = "failed", "failed", "exit-code", 1

    def start(self, how=None):
        if self.active == "active":
            return
        self.how = how or self.starts
        self.was_started = self.how != "skip"
        self.queued, self.looks = "start", 2 if self.how == "slow" else 0
        self.active, self.sub = "activating", "start"
        if self.how == "skip":
            self.active, self.sub = "inactive", "dead"

    def stop(self):
        self.queued, self.looks = "stop", 2 if self.stops == "slow" else 0
        if self.active in ("active", "activating"):
            self.active, self.sub = "deactivating", "stop-sigterm"

    def restart(self, how=None):
        if self.active == "active":
            self.active, self.sub = "inactive", "dead"
        self.start(how)

    def reset_failed(self):
        self.restarts = 0
        if self.active == "failed":
            self.active, self.sub, self.result, self.status = "inactive", "dead", "success", 0

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
        self.active, self.sub = ends[self.how]
        if self.how in ("exit", "crash"):
            self.result, self.status = "exit-code", 78
        if self.how != "hang":
            self.queued = None

    def _stop(self):
        if self.stops not in ("hang", "immortal"):
            self.active, self.sub, self.queued = "inactive", "dead", None
            self.tasks = 3 if self.stops == "forks" else 0

    def kill(self):
        if self.stops != "immortal":
            self.tasks = 0
            if self.active in ("active", "activating", "deactivating"):
                self.active, self.sub, self.queued = "failed", "failed", None
                self.result = "signal"

    def show(self, name):
        self.look()
        return (
            f"Id={name}\nLoadState={'masked' if self.is_masked else 'loaded'}\n"
            f"ActiveState={self.active}\nSubState={self.sub}\n"
            f"Result={self.result}\nNRestarts={self.restarts}\nExecMainStatus={self.status}\n"
            f"Job={'17' if self.queued else '0'}\n"
            f"UnitFileState={'enabled' if self.enabled else 'disabled'}\n"
            f"InvocationID={INVOCATION if self.was_started else ''}\n"
            f"TasksCurrent={self.tasks or '[not set]'}\n"
        )


# -- the runtimes


class FakeRuntime:
    """
    The runtime process of one slot.

    Attributes:
        requests, errors: Answers of /generate since it started; errors are those with 500.
        is_ready, has_metrics: It answers /readyz with 200, and /metrics at all.
        fails_with: Status that /generate answers instead of a text.
        answers: Text by prompt, beside the golden ones of its bundle.
        seen: (document, token) of each /generate.
    """

    def __init__(self):
        self.is_ready = self.has_metrics = True
        self.fails_with = None
        self.answers = {}
        self.seen = []
        self.restart()

    def restart(self):
        self.requests = self.errors = 0

    def metrics(self):
        name = "slipway_http_requests_total"
        return (
            f"# TYPE {name} counter\n"
            f'{name}{{route="/generate",code="200"}} {float(self.requests - self.errors)}\n'
            f'{name}{{route="/generate",code="500"}} {float(self.errors)}\n'
            f'{name}{{route="/readyz",code="200"}} 7.0\n'
        )


# -- HAProxy


_COUNTERS = (
    *("stot", "econ", "eresp", "hrsp_2xx", "hrsp_4xx", "hrsp_5xx"),
    *("wretr", "wredis", "srv_abrt"),
)


class FakeServer:
    """
    One server of HAProxy's backend.

    Attributes:
        health: 0 is down, 1 is up on trust ("UP 1/2"), 2 is up.
        counters: Cumulative, by column of `show stat`.
    """

    def __init__(self, now_s):
        self.admin, self.own_weight, self.health = "maint", 100, 2
        self.sessions = self.queued = 0
        self.counters = dict.fromkeys(_COUNTERS, 0)
        self.checked_s = now_s

    @property
    def weight(self):
        return self.own_weight if self.admin == "ready" else 0

    @property
    def status(self):
        if self.admin == "maint":
            return "MAINT"
        if self.health == 0:
            return "DOWN"
        if self.admin == "drain":
            return "DRAIN"
        return "UP" if self.health == 2 else "UP 1/2"

    def set_admin(self, admin, now_s):
        if self.admin == "maint" and admin != "maint":
            self.health, self.checked_s = 1, now_s
        self.admin = admin

    def check(self, now_s, is_ready):
        count = int((now_s - self.checked_s) / CHECK_INTERVAL_S)
        if count and self.admin != "maint":
            self.health = 2 if is_ready else max(0, self.health - count)
        self.checked_s += count * CHECK_INTERVAL_S


class FakeHaproxy:
    """
    HAProxy behind its runtime socket.

    Attributes:
        is_running: False: nothing answers on the socket.
        has_socket: False: the file of its socket was removed, and comes back with a restart alone.
        servers: By slot.
    """

    def __init__(self, now_s):
        self.is_running = self.has_socket = True
        self.servers = {slot: FakeServer(now_s) for slot in SLOTS}
        self.door = "ready"

    @property
    def weights(self):
        return {slot: server.weight for slot, server in self.servers.items()}

    def start(self, state, now_s):
        """
        Start with what the state file has, as HAProxy does: the text *state*, or None.
        """
        self.is_running = self.has_socket = True
        self.servers = {slot: FakeServer(now_s) for slot in SLOTS}
        doors = parse_servers_state(state, DOOR_BACKEND) if state else {}
        is_closed = any(int(row["srv_admin_state"]) & 1 for row in doors.values())
        self.door = "maint" if is_closed else "ready"
        for slot, row in parse_servers_state(state, BACKEND).items() if state else ():
            flags = int(row["srv_admin_state"])
            server = self.servers[slot]
            server.admin = "maint" if flags & 1 else "drain" if flags & 8 else "ready"
            server.own_weight = int(row["srv_uweight"])
            server.health = int(row["srv_op_state"]) and 2

    def ask(self, command, now_s, is_ready):
        if not self.is_running:
            raise ConnectionRefusedError(111, "Connection refused")
        if not self.has_socket:
            raise FileNotFoundError(2, "No such file or directory")
        for slot, server in self.servers.items():
            server.check(now_s, is_ready(slot))
        words = command.split()
        if words == ["show", "stat"]:
            return self._stat()
        if words == ["show", "servers", "state"]:
            return self._state()
        if words[:4] == ["set", "server", f"{DOOR_BACKEND}/{DOOR_SERVER}", "state"]:
            assert words[4] in ("ready", "maint"), command
            self.door = words[4]
            return "\n"
        if words[:2] == ["set", "server"] and words[3] == "state":
            if (server := self._named(words[2])) is None:
                return "No such server.\n\n"
            assert words[4] in ("ready", "drain", "maint"), command
            server.set_admin(words[4], now_s)
            return "\n"
        if words[:2] == ["set", "weight"]:
            if (server := self._named(words[2])) is None:
                return "No such server.\n\n"
            if not 0 <= int(words[3]) <= 256:
                return "Absolute weight can only be between 0 and 256 inclusive.\n\n"
            server.own_weight = int(words[3])
            return "\n"
        if words[1:2] == ["map"]:  # its configuration has none
            return "Unknown map identifier. Please use #<id> or <file>.\n\n"
        raise AssertionError(f"unknown command of HAProxy: {command}")

    def _named(self, name):
        backend, _, server = name.partition("/")
        return self.servers.get(server) if backend == BACKEND else None

    def _stat(self):
        rows = [_stat_row("public", "FRONTEND", "OPEN", ())]
        for slot, server in self.servers.items():
            numbers = {"weight": server.own_weight, "uweight": server.own_weight}
            numbers |= {"scur": server.sessions, "qcur": server.queued}
            numbers |= server.counters
            rows.append(_stat_row(BACKEND, slot, server.status, tuple(numbers.items())))
        rows.append(_stat_row(BACKEND, "BACKEND", "UP", ()))
        return "# " + "\n".join([",".join(_stat_columns()), *rows]) + "\n\n"

    def _state(self):
        version, header, _ = _recorded("just_ready.state.txt")[:3]
        rows = [
            _state_row(number, slot, server.own_weight, server.admin, server.health > 0)
            for number, (slot, server) in enumerate(self.servers.items(), start=1)
        ]
        rows.append(_state_row(1, DOOR_SERVER, 1, self.door, True, DOOR_BACKEND))
        return "\n".join([version, header, *rows]) + "\n\n"


@functools.cache
def _stat_columns():
    return _recorded("just_ready.stat.csv")[0].lstrip("# ").split(",")


@functools.lru_cache(1024)
def _stat_row(backend, name, status, numbers):
    row = {"pxname": backend, "svname": name, "status": status, **dict(numbers)}
    line = ",".join([str(row.pop(column, "")) for column in _stat_columns()])
    assert not row, f"HAProxy has no such columns: {row}"
    return line


@functools.lru_cache(1024)
def _state_row(number, slot, own_weight, admin, is_healthy, backend=BACKEND):
    _, header, line = _recorded("just_ready.state.txt")[:3]
    row = dict(zip(header[2:].split(), line.split(), strict=True))
    row |= {"srv_id": number, "srv_name": slot, "srv_uweight": own_weight, "be_name": backend}
    row |= {"srv_op_state": 2 if is_healthy and admin != "maint" else 0}
    row |= {"srv_admin_state": {"ready": 4, "drain": 12, "maint": 5}[admin]}
    return " ".join(map(str, row.values()))


def _recorded(name, _cache={}):  # noqa: B006
    if name not in _cache:
        lines = (RECORDED / name).read_text().splitlines()
        _cache[name] = [line for line in lines if not line.startswith("##")]
    return _cache[name]


# -- the system


class FakeSystem(System):
    """
    The operating system of a host under a temporary root.

    Attributes:
        units: By unit name.
        runtimes: By slot; reachable while the unit of the slot is active.
        mounts: Slot of each mount unit, by name.
        unmounted: Slots whose file system was unmounted, in order.
        log: Lines that the journal of systemd has of every unit.
        real: Programs, or directories of programs, that are really run.
        at_reboot: Called by `systemctl reboot`, in place of a reboot.
        kernel_release: Of the running kernel.
        installed_driver: Version of its NVIDIA module; None: it has none.
        driver_module: Name of that module.
        driver_license: License of that module.
        in_sandbox: What the build user's sandbox runs: the program's own command line.
        calls: Every command line.
        before: Called with each command line before it runs.
        free: Free bytes of every file system.
        bad_starts: How the start of a slot with that bundle ends, by digest.
        bad_golden: Digests of bundles whose golden answers differ.
    """

    def __init__(self, root, clock=None):
        super().__init__(Layout(str(root)))
        self.clock = clock or FakeClock()
        # systemd shows a unit that is not loaded as an inactive one.
        self.units = {name: FakeUnit() for name in (*map(unit, SLOTS), *PACKAGE_UNITS)}
        for name in (DEADMAN_TIMER, DEADMAN_BOOT, HAPROXY_UNIT):
            self.units[name] = FakeUnit()
            self.units[name].run()
        self.mounts = {slot_mount(slot): slot for slot in SLOTS}
        self.unmounted = []
        self.runtimes = {slot: FakeRuntime() for slot in SLOTS}
        self.proxy = FakeHaproxy(self.clock.steady)
        self.log = ["Loading the model", "ValueError: no such tensor"]
        self.real = set()
        self.calls = []
        self.in_sandbox = []
        self.left_running = []
        self.at_reboot = lambda: None
        self.kernel_release = "6.1.0-18-amd64"
        self.installed_driver = None
        self.driver_module, self.driver_license = "nvidia", "NVIDIA"
        self.before = lambda argv: None
        self.free = 1 << 40
        self.boot = BOOT
        self.bad_starts = {}
        self.bad_golden = set()
        self._lock = threading.RLock()
        self._slept = threading.local()
        self.layout.state.mkdir(parents=True, exist_ok=True)
        self._lay_deadman()
        self._make_run()
        for slot in SLOTS:
            self._make_socket(slot)

    def _lay_deadman(self):
        """
        Install and test the host's own way back, as provisioning does.
        """
        for path in (self.layout.host_program, *self.layout.deadman_units):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"as provisioned")
        self.layout.deadman_tested.write_bytes(mark_of(dict.fromkeys(PATHS, b"as provisioned")))

    def use_real(self, *methods):
        """
        Let the named methods be those of the real System.
        """
        for name in methods:
            setattr(self, name, types.MethodType(getattr(System, name), self))

    def unit_of(self, slot):
        return self.units[unit(slot)]

    def linked(self, slot):
        """
        Return the digest of the bundle that *slot* leads to, or None.
        """
        link = self.layout.slot_link(slot)
        return link.readlink().name if link.is_symlink() else None

    def remove_run(self):
        """
        Remove /run/slipway, with every socket in it.
        """
        shutil.rmtree(self.layout.run)
        self.proxy.is_running = False  # it cannot be reached until it binds its socket again

    def answer(self, slot, requests, errors=0):
        """
        Let *slot* answer *requests* that HAProxy sent, of which *errors* with 503.
        """
        self.runtimes[slot].requests += requests
        self.runtimes[slot].errors += errors
        seen = {"stot": requests, "hrsp_2xx": requests - errors, "hrsp_5xx": errors}
        for name, number in seen.items():
            self.proxy.servers[slot].counters[name] += number

    # -- what verbs call

    def wall_s(self):
        return self.clock.wall

    def steady_s(self):
        return self.clock.steady

    def sleep(self, seconds):
        self._slept.total_s = self.slept_s() + seconds
        self.clock.pass_s(seconds)
        self.clock.on_sleep()

    def slept_s(self):
        """
        Return how long this thread has slept here.
        """
        return getattr(self._slept, "total_s", 0.0)

    def boot_id(self):
        return self.boot

    def kernel(self):
        return self.kernel_release

    def reboot(self):
        """
        Boot anew, as systemd and HAProxy do it: enabled slots run, with the shares of before.
        """
        self.boot = f"{int(self.boot[:8]) + 1:08d}{self.boot[8:]}"
        shutil.rmtree(Path(self.layout.root, "run"))
        self._make_run()
        state = self.layout.haproxy_state
        self.proxy.start(state.read_text() if state.exists() else None, self.clock.steady)
        for slot in SLOTS:
            if self.unit_of(slot).enabled:
                self._make_socket(slot)
                self.runtimes[slot].restart()
                self.unit_of(slot).restart()

    def free_bytes(self, path):
        assert path.is_relative_to(self.layout.root)
        return self.free

    def lock(self, descriptor, timeout_s):
        # The holder is a thread of this process, and takes no time of the fake clock.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True

    def haproxy(self, command):
        if not self.layout.run.is_dir():
            raise FileNotFoundError(2, "No such file or directory")
        with self._lock:
            return self.proxy.ask(command, self.clock.steady, self._is_ready)

    def http(self, slot, method, target, *, timeout_s, document=None, token=None):
        assert timeout_s > 0
        with self._lock:
            if not self._runs(slot) or not self.layout.runtime_socket(slot).exists():
                return HttpAnswer(None, "[Errno 2] No such file or directory")
            runtime = self.runtimes[slot]
            if (method, target) == ("GET", "/readyz"):
                return HttpAnswer(200 if runtime.is_ready else 503, "")
            if (method, target) == ("GET", "/metrics"):
                return HttpAnswer(200, runtime.metrics()) if runtime.has_metrics else _NOT_FOUND
            if (method, target) == ("POST", "/generate"):
                runtime.seen.append((document, token))
                return self._generate(slot, runtime, document)
        raise AssertionError(f"unknown request to a runtime: {method} {target}")

    def http_public(self, method, target, *, timeout_s, document=None, token=None):
        """
        HAProxy gives the request to the slot with the largest share that is UP.
        """
        assert timeout_s > 0
        with self._lock:
            servers = self.proxy.servers
            serving = [s for s in SLOTS if servers[s].weight and servers[s].health]
            if not self.proxy.is_running:
                return HttpAnswer(None, "[Errno 111] Connection refused")
            if not serving:
                return HttpAnswer(503, '{"error": {"code": "unavailable"}}')
            slot = max(serving, key=lambda s: servers[s].weight)
            if not self._runs(slot):
                return HttpAnswer(502, '{"error": {"code": "bad_gateway"}}')
            if (method, target) == ("GET", "/v1/models"):
                answer = HttpAnswer(200, "{}")
            else:
                routes = ("/generate", "/v1/chat/completions")
                assert method == "POST", f"{method} {target}"
                assert target in routes, f"{method} {target}"
                self.runtimes[slot].seen.append((document, token))
                answer = self._generate(slot, self.runtimes[slot], document)
        return answer._replace(version=version_of(self.layout, self.linked(slot)))

    def run(self, argv, *, timeout_s, stdin=b"", env=None):
        assert timeout_s > 0
        self.calls.append(list(argv))
        self.before(argv)
        with self._lock:
            if argv[0] == "systemctl":
                return self._systemctl(*argv[1:])
            if argv[0] == "systemd-tmpfiles":
                return self._systemd_tmpfiles(*argv[1:])
            if argv[0] == "journalctl":
                return self._journalctl(*argv[1:])
            if argv[0] == "modinfo":
                return self._modinfo(*argv[1:])
        if argv[0] == "systemd-run":
            return self._systemd_run(argv[1:], timeout_s)
        if argv[0] in self.real or any(argv[0].startswith(f"{r}/") for r in self.real):
            return super().run(argv, timeout_s=timeout_s, stdin=stdin, env=env)
        raise AssertionError(f"unknown program: {argv}")

    def account(self, name):
        # Every user of the fake host is the one who runs the tests.
        assert name in (paths.USER, paths.BUILD_USER), name
        return Account(os.geteuid(), os.getegid())

    def interpreter(self, version):
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        return Path(sys.executable).resolve() if version == own else None

    def processes_of(self, uid):
        return self.left_running

    # -- inside

    def _make_run(self):
        for slot in SLOTS:
            self.layout.runtime_socket(slot).parent.mkdir(parents=True, exist_ok=True)

    def _make_socket(self, slot):
        path = self.layout.runtime_socket(slot)
        if path.parent.is_dir() and not path.exists():
            path.touch()

    def _systemd_tmpfiles(self, *words):
        assert words == ("--create", paths.TMPFILES)
        self._make_run()
        return ProgramResult(0, "", "")

    def _systemd_run(self, words, timeout_s):
        """
        Run a program without the sandbox, which only a real systemd can make; the lab has one.
        """
        options, argv = words[: words.index("--")], words[words.index("--") + 1 :]
        is_own_user = "--property=DynamicUser=yes" in options
        assert is_own_user or f"--uid={paths.BUILD_USER}" in options, options
        self.in_sandbox.append(list(argv))
        env = [o.removeprefix("--setenv=") for o in options if o.startswith("--setenv=")]
        return super().run(["env", "-i", *env, *argv], timeout_s=timeout_s)

    def _is_ready(self, slot):
        if not self._runs(slot) or not self.runtimes[slot].is_ready:
            return False
        return self.layout.runtime_socket(slot).exists()

    def _runs(self, slot):
        return unit(slot) in self.units and self.unit_of(slot).active == "active"

    def _generate(self, slot, runtime, document):
        if runtime.fails_with:
            return HttpAnswer(runtime.fails_with, '{"error": {"code": "broken"}}')
        if "messages" in document:
            return HttpAnswer(200, '{"choices": [{"message": {"content": "x"}}]}')
        text = runtime.answers.get(document["prompt"])
        if text is None:
            golden = self.layout.slot_link(slot) / "golden.jsonl"
            lines = [json.loads(line) for line in golden.read_text().splitlines()]
            text = {line["prompt"]: line["expected"] for line in lines}[document["prompt"]]
            if self.linked(slot) in self.bad_golden:
                text = f"not {text}"
        return HttpAnswer(200, json.dumps({"text": text}))

    def _unmount(self, name):
        # systemd stops what requires a mount before the mount.
        slot = self.mounts[name]
        assert self.unit_of(slot).active in ("inactive", "failed"), f"{name} is in use"
        self.unmounted.append(slot)

    def _journalctl(self, *words):
        assert words[:5] == ("--quiet", "--no-pager", "--output", "cat", "--lines")
        last, about = int(words[5]), words[6:]
        if about[0] == "--unit":
            assert about[1] in self.units or about[1] == SANDBOX_UNIT
            assert about[2] == "--since"
            assert about[3].startswith("@")
            lines = ["Starting it...", *self.log, "Failed to start it."]
        else:
            assert about == (f"_SYSTEMD_INVOCATION_ID={INVOCATION}",)
            lines = self.log
        return ProgramResult(0, "".join(f"{line}\n" for line in lines[-last:]), "")

    def _modinfo(self, *words):
        option, field, name = words
        assert option == "-F"
        if self.installed_driver is None or name != self.driver_module:
            return ProgramResult(1, "", f"modinfo: ERROR: Module {name} not found.\n")
        values = {"version": self.installed_driver, "license": self.driver_license}
        return ProgramResult(0, f"{values[field]}\n", "")

    def _systemctl(self, verb, *words):
        if verb == "reboot":
            assert words == ()
            self.at_reboot()
            return ProgramResult(0, "", "")
        names = [word for word in words if not word.startswith("-") and "=" not in word]
        options = {word for word in words if word.startswith("-")}
        if verb == "stop" and names[0] in self.mounts:
            self._unmount(names[0])
            return ProgramResult(0, "", "")
        if verb == "stop" and names == [SANDBOX_UNIT]:
            return ProgramResult(5, "", f"Unit {SANDBOX_UNIT} not loaded.\n")
        for name in names:
            if name not in self.units:
                return ProgramResult(4, "", f"Unit {name} could not be found.\n")
        if verb == "show":
            return ProgramResult(0, "\n".join(self.units[n].show(n) for n in names), "")
        (name,) = names
        chosen = self.units[name]
        if verb in ("start", "restart") and chosen.is_masked:
            return ProgramResult(1, "", f"Failed to {verb} {name}: Unit {name} is masked.\n")
        if verb in ("start", "restart"):
            assert options == {"--no-block"}
            if name == HAPROXY_UNIT:
                is_stopped = verb == "restart" or not self.proxy.is_running
                getattr(chosen, verb)()
                chosen.look()
                if is_stopped and chosen.starts == "ready":
                    path = self.layout.haproxy_state
                    state = path.read_text() if path.exists() else None
                    self.proxy.start(state, self.clock.steady)
                return ProgramResult(0, "", "")
            slot = next(s for s in SLOTS if unit(s) == name)
            if chosen.active != "active" or verb == "restart":
                self.runtimes[slot].restart()
                self._make_socket(slot)
            getattr(chosen, verb)(self.bad_starts.get(self.linked(slot)))
        elif verb == "stop":
            assert options == {"--no-block"}
            chosen.stop()
        elif verb in ("enable", "disable"):
            assert options == {"--quiet"}
            chosen.enabled = verb == "enable"
        elif verb == "set-property":
            assert options == {"--runtime"}
            key, _, value = words[-1].partition("=")
            assert key == "CPUWeight"
            chosen.cpu_weight = int(value)
        elif verb == "kill":
            assert options == {"--signal=SIGKILL"}
            chosen.kill()
        elif verb == "reset-failed":
            chosen.reset_failed()
        else:
            raise AssertionError(f"unknown command: systemctl {verb} {words}")
        return ProgramResult(0, "", "")


_NOT_FOUND = HttpAnswer(404, "")


# -- states of a host


def place_release(system, bundle, version="v1", golden=GOLDEN):
    """
    Put a release in place, as if it had been staged.
    """
    directory = system.layout.release(bundle)
    directory.mkdir(parents=True)
    manifest = {"version": version, "model_name": "tiny"}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    (directory / "golden.jsonl").write_text("".join(json.dumps(g) + "\n" for g in golden))


def serve(system, bundle, version="v1", slot="blue", release=None):
    """
    Let *slot* serve *bundle* alone, recorded as good under *release*.
    """
    if not system.layout.release(bundle).exists():
        place_release(system, bundle, version)
    system.layout.slot_links.mkdir(parents=True, exist_ok=True)
    link_atomic(system.layout.slot_link(slot), system.layout.release(bundle))
    for name in SLOTS:
        server = system.proxy.servers[name]
        server.admin, server.own_weight, server.health = "maint", 0, 2
    system.unit_of(slot).run()
    server = system.proxy.servers[slot]
    server.admin, server.own_weight = "ready", 100
    record_good(system, bundle, version, slot, release)


def record_good(system, bundle, version="v1", slot="blue", release=None):
    """
    Record *bundle* as good in the journal of the host.
    """
    args = {"bundle": bundle, "version": version, "slot": slot}
    name = release or f"r-{version}"
    Journal(system).append(Result(name, None, "test", GoodRecord.VERB, args, ok=True, result={}))


# -- the transport

LOST_BEFORE, ANSWER_LOST, REFUSED = "lost before", "answer lost", "refused"
RUNS_LATE = "runs late"


class Fault(NamedTuple):
    """
    A failure at one call of a verb, or of "put".

    Attributes:
        how: LOST_BEFORE: the connection is lost and the verb does not run.  ANSWER_LOST: the verb
            runs and its answer is lost.  REFUSED: the verb does not run; the host answers `error`.
            RUNS_LATE: the connection is lost, and the verb runs after the next one.
        call: Which call of the verb on this host, from 1; None: every call.
    """

    verb: str
    how: str
    call: int | None = 1
    error: HostError | None = None

    def matches(self, verb, count):
        return self.verb == verb and self.call in (None, count)


class LocalTransport:
    """
    Runs the real host program in this process.

    Attributes:
        faults: Failures to come.
        is_cut: The host is unreachable.
        calls: (verb, request, call) of each verb that was sent, run or not.
        puts: Remote path of each file that was sent, arrived or not.
        closed: How often the connection was closed.
    """

    def __init__(self, host, system):
        self.host = host
        self.system = system
        self.faults = []
        self.is_cut = False
        self.calls = []
        self.puts = []
        self.closed = 0
        self._lock = threading.Lock()
        self._counts = {}
        self._late = []

    def fail(self, verb, how, call=1, error=None):
        """
        Let a call of *verb* fail; see `Fault`.
        """
        assert verb in {*REQUESTS, "put"}, verb
        is_of_verbs = how in (REFUSED, RUNS_LATE) and verb != "put"
        assert how in (LOST_BEFORE, ANSWER_LOST) or is_of_verbs, how
        self.faults.append(Fault(verb, how, call, error))

    def verbs(self):
        return [verb for verb, _, _ in self.calls]

    def run(self, argv, *, timeout_s, stdin=None, check=True, output_max=2**20):
        words = list(argv)
        if words[:2] == ["sudo", "-n"]:
            words = words[2:]
        assert words[:-1] == list(paths.HOST_COMMAND), argv
        verb, text = words[-1], (stdin or b"").decode()
        with self._lock:
            try:
                self.calls.append((verb, *parse_request(verb, text)))
            except HostError:
                self.calls.append((verb, None, None))  # the verb refuses it
        began_s = self.system.slept_s()
        line = self._faulty(verb, lambda: handle(self.system, verb, text))
        took_s = self.system.slept_s() - began_s
        if took_s > timeout_s:
            raise self._lost(f"{verb} did not answer within {timeout_s:g} s")
        assert "\n" not in line
        return Completed(tuple(argv), 0, line + "\n", "", took_s)

    def put(self, local, remote, *, timeout_s, mode=0o644):
        assert remote.startswith(f"{paths.INCOMING}/"), remote
        assert timeout_s > 0
        self.puts.append(remote)
        target = Path(self.system.layout.root) / remote.lstrip("/")

        def copy():
            shutil.copyfile(local, target)
            target.chmod(mode)

        self._faulty("put", copy)

    def close(self):
        self.closed += 1

    def _faulty(self, verb, work):
        with self._lock:
            count = self._counts[verb] = self._counts.get(verb, 0) + 1
            fault = next((f for f in self.faults if f.matches(verb, count)), None)
        if self.is_cut:
            raise self._lost("no route to host")
        if fault is None:
            done = work()
            while self._late:
                self._late.pop()()
            return done
        if fault.how == RUNS_LATE:
            self._late.append(work)
        if fault.how in (LOST_BEFORE, RUNS_LATE):
            raise self._lost(f"{verb}: the connection was lost")
        if fault.how == ANSWER_LOST:
            work()
            raise self._lost(f"{verb}: the connection was lost")
        return encode_error(fault.error or _refusal(verb))

    def _lost(self, why):
        return TransportError(
            f"{self.host}: no answer", why=why, fix="check the network", host=self.host
        )


def _refusal(verb):
    return HostError(ErrorKind.COMMAND_FAILED, f"{verb} failed", "a test said so", "nothing")


@contextmanager
def local_hosts(*names, clock=None):
    """
    Yield a transport for each of *names*, over a root of its own.

    Args:
        clock: One clock for all hosts; None: each has its own.
    """
    with short_directory() as root:
        yield {
            name: LocalTransport(name, FakeSystem(Path(root) / name, clock=clock)) for name in names
        }
