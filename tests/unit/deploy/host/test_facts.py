"""
The verb `facts`, on a host under a temporary root.
"""

import base64
import hashlib
import hmac
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.host.protocol import FactQuery, LeaseRelease, Listener, UnitFacts, UserFacts
from deploy.host.system import ProgramResult, System
from tests.free_port import free_port
from tests.unit.deploy.certificates.builders import NOW, make_authority
from tests.unit.deploy.host.fakes import TemporaryHost

# systemctl show, systemd 252: a unit that runs, an instance of a stale template, an absent one.
UNITS = """\
Id=haproxy.service
LoadState=loaded
ActiveState=active
UnitFileState=enabled
NeedDaemonReload=no
FragmentPath=/lib/systemd/system/haproxy.service
DropInPaths=

Id=slipway-runtime@blue.service
LoadState=loaded
ActiveState=inactive
UnitFileState=disabled
NeedDaemonReload=yes
FragmentPath=/etc/systemd/system/slipway-runtime@.service
DropInPaths=/etc/systemd/system/service.d/a.conf /run/systemd/system/x.service.d/b.conf

Id=other.service
LoadState=not-found
ActiveState=inactive
UnitFileState=
NeedDaemonReload=no
"""


class Programs:
    """
    The programs of the host that facts are read from; any other command is an AssertionError.
    """

    def __init__(self, host, outputs):
        self.outputs = outputs
        host.system.run = self.run

    def run(self, argv, *, timeout_s, stdin=b"", env=None):
        assert timeout_s > 0
        assert argv[0] in self.outputs, f"unknown program: {argv}"
        return self.outputs[argv[0]]


def facts(host, **query):
    return host.call(FactQuery(**query))


def place(host, path, content=b""):
    """
    Write a file on the host; return its path on this machine.
    """
    target = host.root_path / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


@pytest.fixture
def host(tmp_path):
    temporary = TemporaryHost(tmp_path)
    temporary.root_path = tmp_path
    temporary.system.proxy.is_running = False
    return temporary


def test_a_bare_host_answers(host):
    """
    Every fact of an empty host is absent, and none is an error.
    """
    bare = facts(
        host,
        paths={"/etc/slipway": ""},
        packages=("haproxy",),
        users=("no-such-user",),
        listings=("/opt/slipway/wheelhouse",),
        room=("/opt/slipway",),
        port=8000,
        haproxy=True,
    )
    assert bare.paths == {"/etc/slipway": None}
    assert bare.packages == {"haproxy": None}
    assert bare.users == {"no-such-user": None}
    assert bare.listings == {"/opt/slipway/wheelhouse": {}}
    assert bare.room == {"/opt/slipway": host.system.free}
    assert (bare.listeners, bare.haproxy, bare.lease, bare.driver) == ((), None, None, None)
    assert (bare.pythons, bare.os_id, bare.has_apt) == ((), "", False)


def test_types_of_paths_are_distinguished(host):
    """
    A link is a link, with any target; a path below a file does not exist.
    """
    place(host, "/d/file", b"x")
    (host.root_path / "d/link").symlink_to("/nowhere")
    os.mkfifo(host.root_path / "d/fifo")
    names = ["/d", "/d/file", "/d/link", "/d/fifo", "/d/file/below"]
    paths = facts(host, paths=dict.fromkeys(names, "")).paths
    types = {name: path.type if path else None for name, path in paths.items()}
    assert types == {
        "/d": "directory",
        "/d/file": "file",
        "/d/link": "link",
        "/d/fifo": "other",
        "/d/file/below": None,
    }
    assert paths["/d/link"].target == "/nowhere"
    assert paths["/d/file"].size == 1


def test_mode_and_owner_are_reported(host):
    """
    The mode has four octal digits; owner and group are names.
    """
    place(host, "/environment").chmod(0o600)
    path = facts(host, paths={"/environment": ""}).paths["/environment"]
    assert path.mode == "0600"
    assert path.owner == ("root" if os.getuid() == 0 else path.owner)
    assert path.sha256 is None


def test_the_text_of_a_secret_never_leaves_the_host(host):
    """
    A file with another hash is returned with its text, unless it is a secret.
    """
    path, content = "/etc/slipway/environment", b"TOKEN=x"
    place(host, path, content)
    sha256 = hashlib.sha256(content).hexdigest()
    differs = facts(host, paths={path: "0" * 64}).paths[path]
    assert (differs.sha256, differs.text) == (sha256, "TOKEN=x")
    key = "ab" * 32
    secret = facts(host, secrets={path: key}).paths[path]
    mac = hmac.new(bytes.fromhex(key), content, "sha256").hexdigest()
    assert (secret.sha256, secret.text, secret.mac) == (None, None, mac)
    assert facts(host, secrets={path: "cd" * 32}).paths[path].mac != mac
    assert facts(host, secrets={"/etc": key}).paths["/etc"].mac is None
    assert facts(host, secrets={"/nowhere": key}).paths["/nowhere"] is None
    assert facts(host, paths={path: sha256}).paths[path].text is None


def test_a_certificate_leaves_the_host_without_its_key(host):
    """
    None for a file that HAProxy could not serve, and where it was not asked for.
    """
    path, key = "/etc/slipway/tls/public.pem", "ab" * 32
    pair = make_authority().issue(("n1",), NOW)

    def found(text, certificates=(path,)):
        place(host, path, text.encode())
        return facts(host, secrets={path: key}, certificates=certificates).paths[path]

    pem = pair.pem.reveal()
    alone = pem[: pem.index("-----BEGIN PRIV")]
    other = make_authority().issue(("n1",), NOW).pem.reveal()
    assert base64.b64decode(found(pem).certificate) == pair.leaf.public_bytes(Encoding.DER)
    assert found(pem, ()).certificate is None
    for text in ("", "nothing", alone, pem[:-100], alone + other):
        assert found(text).certificate is None
    assert facts(host, secrets={"/no": key}, certificates=("/no",)).paths["/no"] is None


def test_a_large_text_is_omitted(host):
    """
    Above 64 KiB only the hashes are compared.
    """
    place(host, "/big", b"x" * (64 * 1024 + 1))
    assert facts(host, paths={"/big": "0" * 64}).paths["/big"].text is None
    place(host, "/big", b"x" * (64 * 1024))
    assert facts(host, paths={"/big": "0" * 64}).paths["/big"].text is not None


def test_units_that_systemd_does_not_know_are_not_found(host):
    """
    Each unit has systemd's states; a unit that is missing in the output is "not-found".
    """
    Programs(host, {"systemctl": ProgramResult(0, UNITS, "")})
    names = ("haproxy.service", "slipway-runtime@blue.service", "other.service", "none.service")
    assert facts(host, units=names).units == {
        "haproxy.service": UnitFacts(
            "loaded",
            "active",
            "enabled",
            stale=False,
            fragment="/lib/systemd/system/haproxy.service",
        ),
        "slipway-runtime@blue.service": UnitFacts(
            "loaded",
            "inactive",
            "disabled",
            stale=True,
            fragment="/etc/systemd/system/slipway-runtime@.service",
            drop_ins=(
                "/etc/systemd/system/service.d/a.conf",
                "/run/systemd/system/x.service.d/b.conf",
            ),
        ),
        "other.service": UnitFacts("not-found", "inactive", "", stale=False),
        "none.service": UnitFacts("not-found", "inactive", "", stale=False),
    }


def test_a_program_that_fails_is_an_error_not_an_empty_fact(host):
    """
    Without systemd's answer the states of units are unknown.
    """
    failed = ProgramResult(1, "", "Failed to connect to bus: Host is down\n")
    Programs(host, {"systemctl": failed})
    error = host.refusal(FactQuery(units=("haproxy.service",)))
    assert error.kind.value == "CommandFailed"
    assert "Failed to connect to bus" in error.why


@pytest.mark.parametrize(
    ("output", "why"),
    [("", "it is empty"), ("Id=haproxy.service\nLoadState=loaded\n", "it lacks 'ActiveState'")],
)
def test_an_answer_of_systemd_that_is_not_whole_is_an_error(host, output, why):
    """
    It says what was answered.
    """
    Programs(host, {"systemctl": ProgramResult(0, output, "")})
    error = host.refusal(FactQuery(units=("haproxy.service",)))
    assert error.kind.value == "CommandFailed"
    assert why in error.why


def test_packages_have_their_installed_version(host):
    """
    A removed package, or one unknown to dpkg, has no version.
    """
    place(host, "/usr/bin/dpkg-query")
    # dpkg-query exits 1 when one of the names is unknown, and prints the others.
    output = "haproxy\tinstalled\t2.6.12-1\nsocat\tconfig-files\t1.7.4\n"
    Programs(host, {"dpkg-query": ProgramResult(1, output, "no packages found matching gone\n")})
    packages = facts(host, packages=("haproxy", "socat", "gone")).packages
    assert packages == {"haproxy": "2.6.12-1", "socat": None, "gone": None}


def test_users_come_from_the_files_of_the_host(host):
    """
    A user has group, shell, home, other groups and a password or none.
    """
    place(host, "/etc/passwd", b"ann:x:7:8::/home/ann:/bin/sh\n")
    place(host, "/etc/group", b"staff:x:8:\n")
    assert facts(host, users=("ann", "eve")).users == {
        "ann": UserFacts("staff", "/bin/sh", "/home/ann", groups=(), is_locked=True),
        "eve": None,
    }


def test_a_listener_is_named(tmp_path):
    """
    The program on a listening port is named; a free port has none.
    """
    system = System()
    call = TemporaryHost(tmp_path)
    call.system = system
    with socket.create_server(("127.0.0.1", free_port())) as server:
        port = server.getsockname()[1]
        name = Path("/proc/self/comm").read_text().strip()
        assert facts(call, port=port).listeners == (Listener(name, os.getpid()),)
    assert facts(call, port=port).listeners == ()


def test_a_listener_may_have_a_name_that_is_not_utf_8(tmp_path):
    """
    A process gives itself any name.
    """
    script = (
        "import ctypes, socket, sys\n"
        "ctypes.CDLL(None).prctl(15, b'odd\\xff', 0, 0, 0)\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "print(server.getsockname()[1], flush=True)\n"
        "sys.stdin.read()\n"
    )
    call = TemporaryHost(tmp_path)
    call.system = System()
    argv = [sys.executable, "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as odd:
        listeners = facts(call, port=int(odd.stdout.readline())).listeners
        odd.stdin.close()

    assert listeners == (Listener("odd\ufffd", odd.pid),)


@pytest.mark.parametrize(
    ("info", "description"),
    [
        ("Name: HAProxy\nnode: n1\ndescription: slipway abc\nMaxconn: 1\n", "slipway abc"),
        ("Name: HAProxy\nnode: n1\n", ""),
    ],
)
def test_the_loaded_configuration_comes_from_haproxy(host, info, description):
    """
    From the description in `show info`; another HAProxy has none.
    """

    def ask(command):
        assert command == "show info"
        return info

    host.system.haproxy = ask
    assert facts(host, haproxy=True).haproxy == description
    assert facts(host).haproxy is None


def test_a_lease_is_reported_while_it_is_valid(host):
    """
    Its holder is named until it expires or is released.
    """
    host.lease(ttl_s=30.0, owner="ann")
    lease = facts(host).lease
    assert (lease.owner, lease.release, lease.fence, lease.left_s) == ("ann", "r1", 1, 30.0)
    host.call(LeaseRelease())
    assert facts(host).lease is None
    host.lease(ttl_s=30.0)
    host.clock.pass_s(30.0)
    assert facts(host).lease is None


def test_the_distribution_and_its_pythons_are_named(host):
    """
    Python versions come from the names in /usr/bin, the rest from os-release.
    """
    for name in ("python3", "python3.11", "python3.11-config", "python3.9", "python2.7"):
        place(host, f"/usr/bin/{name}")
    place(host, "/usr/bin/apt-get")
    place(host, "/etc/os-release", b'NAME=\xe9\nID=debian\nVERSION_CODENAME="bookworm"\n')
    place(host, "/sys/module/nvidia/version", b"535.104.05\n")
    result = facts(host)
    assert (result.pythons, result.os_id, result.codename) == (
        ("3.11", "3.9"),
        "debian",
        "bookworm",
    )
    assert (result.has_apt, result.driver) == (True, "535.104.05")


def test_facts_change_nothing(host):
    """
    No file is written, and the host's journal stays the same.
    """
    before = sorted(host.root_path.rglob("*"))
    facts(host, paths={"/etc/slipway": ""}, room=("/opt",), haproxy=True, port=1)
    assert sorted(host.root_path.rglob("*")) == before
