"""
A signed bundle whose wheel attacks its host: staged on a booted host, with its real systemd.

The wheel runs code at every start of the environment's Python: a .pth file and a sitecustomize.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import re
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from deploy.bundle.host_program import build_host_program
from deploy.bundle.send import stage
from deploy.errors import BundleTampered, DeployError
from deploy.host import layout
from deploy.host.protocol import LeaseAcquire, LeaseRelease
from deploy.provision import provision
from deploy.wiring.hosts import connect
from tests.lab.exec_trace import ExecTrace
from tests.lab.own_lab import booted_lab
from tests.lab.provision_fixtures import ENV, World
from tests.unit.deploy.bundle.builders import Workshop, make_lock

ROOT = Path(__file__).parents[2]
PAYLOAD = (Path(__file__).parent / "hostile_payload.py").read_text()
START = "import hostile_payload\n"
MARKS = (
    *("/root/hostile-mark", "/root/hostile-started", "/etc/cron.d/hostile-mark"),
    *("/var/tmp/hostile-mark", "/var/tmp/hostile-started", "/tmp/hostile-mark"),
    *("/dev/shm/hostile-mark", "/opt/slipway/bin/hostile-mark"),
    "/opt/slipway/wheelhouse/hostile-mark",
)
HOST = "n1"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with booted_lab("hostile", 1) as config:
        world = World(config, tmp_path_factory.mktemp("fleet"))
        result = provision(world.fleet(HOST), check=False, progress=lambda _: None, env=ENV)
        assert result.error is None, result.error
        yield world


@pytest.fixture
def host(world):
    """
    A connection to the host with a lease; what an attack marked is removed before.
    """
    world.inside(HOST, f"rm -f {' '.join(MARKS)}")
    with connect(world.fleet(HOST)) as on:
        client = on.clients[HOST]
        client.release = "r-hostile"
        client.fence = client.call(LeaseAcquire("lab", 3600)).fence
        yield client
        client.call(LeaseRelease())


class Attack:
    """
    A bundle with a hostile wheel.
    """

    def __init__(self, world, root, version, contents, modes=None):
        self.workshop = Workshop(root)
        self.workshop.lock = hostile_lock(self.workshop.wheels, version, contents, modes or {})
        self.bundle = self.workshop.signed(
            world.config.keys / "signing_ed25519",
            f"v{version}",
            identity="lab@slipway",
            fleet="lab",
        )

    @property
    def venv(self):
        return f"{layout.VENVS}/{self.bundle.manifest.lock.digest}"

    def send(self, client):
        return stage(self.bundle, client=client, wheels=self.workshop.wheels)


def hostile_lock(directory, version, contents, modes):
    """
    Return a lock of one wheel with *contents* beside its own.
    """
    lock = make_lock(directory, name="hostile", version=version)
    [wheel] = lock.wheels
    old = zipfile.ZipFile(io.BytesIO(wheel.path.read_bytes()))
    members = {name: old.read(name) for name in old.namelist() if not name.endswith("RECORD")}
    members |= {name: text.encode() for name, text in contents.items()}
    info = f"hostile-{version}.dist-info"
    record = "".join(f"{name},,\n" for name in [*members, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel.path, "w") as new:
        for name, data in {**members, f"{info}/RECORD": record.encode()}.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (modes.get(name, 0o644) | stat.S_IFREG) << 16
            new.writestr(entry, data)
    return relocked(lock, wheel)


def relocked(lock, wheel):
    data = wheel.path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    text = lock.text.replace(wheel.sha256, sha256)
    return dataclasses.replace(
        lock,
        text=text,
        digest=hashlib.sha256(text.encode()).hexdigest(),
        wheels=(dataclasses.replace(wheel, sha256=sha256, size=len(data)),),
    )


def of_bundles(trace):
    """
    Return what was started of a bundle as root, and as other users.
    """
    unpacked = (layout.VENVS, layout.RELEASES, layout.MODELS, layout.SLOT_LINKS)
    users = ([], [])
    for uid, program, arguments in trace.starts:
        # Other programs take these paths as files to read or to delete.
        is_interpreter = re.fullmatch(r"python.*|sh|bash|dash|env|uv.*", Path(program).name)
        runs = f"{program} {arguments}" if is_interpreter else program
        if program.startswith((layout.INCOMING, layout.WHEELHOUSE)) or any(
            place in runs for place in unpacked
        ):
            users[uid != 0].append((uid, program, arguments))
    return users


def marks(world):
    found = world.inside(HOST, f"ls -1 {' '.join(MARKS)} 2>/dev/null || true")
    return found.split()


def assert_nothing_runs(world):
    left = world.inside(HOST, f"pgrep -u {layout.BUILD_USER} -a || true")
    assert left == ""
    units = world.inside(HOST, "systemctl list-units --all --no-legend 'slipway-build*' || true")
    assert units.strip() == ""


def test_code_in_a_wheel_runs_in_the_sandbox_alone(world, host, tmp_path):
    """
    It runs as the build user without a capability, network, secret or socket of the host, writes
    nothing outside of its draft, and no process of it is left; the release is root's own.
    """
    attack = Attack(
        world,
        tmp_path,
        "1.0",
        {
            "hostile_payload.py": PAYLOAD,
            "hostile.pth": START,
            "sitecustomize.py": START,
            "hostile-1.0.data/scripts/pip": "#!/bin/sh\nid\n",
            "hostile-1.0.data/data/bin/uv": "#!/bin/sh\nid\n",
        },
        {"hostile-1.0.data/data/bin/uv": 0o6755},
    )

    with ExecTrace(HOST, world.config, tmp_path) as trace:
        sent = attack.send(host)

    assert sent.staged.venv_built
    as_root, as_others = of_bundles(trace)
    assert as_others, "control: programs of the bundle are seen"
    assert as_root == []
    lines = world.inside(HOST, f"cat {attack.venv}/report.jsonl").splitlines()
    assert lines, "control: the payload ran"
    uid = world.inside(HOST, f"id -u {layout.BUILD_USER}").strip()
    for line in lines:
        report = json.loads(line)
        assert report.pop("uid") == [uid] * 4
        assert int(report.pop("capabilities"), 16) == 0
        assert report.pop("no_new_privileges") == "1"
        assert report.pop("interfaces") == ["lo"]
        # Directories of its own, which are gone with it.
        assert report.pop("tmp").startswith("done")
        assert report.pop("var").startswith("done")
        assert not report.pop("memory").startswith("done")
        assert report.pop("daemon").startswith("done")
        assert report.pop("processes").startswith("done")
        sudo = report.pop("sudo")
        assert sudo != "done: 0"
        done = {key: value for key, value in report.items() if str(value).startswith("done")}
        assert done == {}
    assert marks(world) == []
    assert_nothing_runs(world)
    before = world.inside(HOST, f"cat {attack.venv}/alive | wc -l")
    assert world.inside(HOST, f"sleep 1; cat {attack.venv}/alive | wc -l") == before
    for top in (attack.venv, f"{layout.RELEASES}/{attack.bundle.digest}", layout.MODELS):
        wrong = world.inside(
            HOST,
            f"find {top} '(' ! -user root -o ! -group slipway -o "
            "'(' ! -type l ! -perm 640 ! -perm 750 ')' ')' | head",
        )
        assert wrong == ""


AFTERMATHS = {
    "a link out of the tree": "os.symlink('/etc/shadow', sys.prefix + '/lib/shadow')",
    "a link that climbs": "os.symlink('../../../../etc', sys.prefix + '/lib/etc')",
    "a link over a link": "os.symlink('lib64/../../..', sys.prefix + '/up')",
    "another python": "os.remove(sys.prefix + '/bin/python'); "
    "os.symlink('/bin/sh', sys.prefix + '/bin/python')",
    "a script for python": "os.remove(sys.prefix + '/bin/python'); "
    "open(sys.prefix + '/bin/python', 'w').write('#!/bin/sh')",
    "a pipe": "os.mkfifo(sys.prefix + '/.complete2')",
    "a second name": "os.link(sys.prefix + '/pyvenv.cfg', sys.prefix + '/again')",
    "a link for the tree": "os.rename(sys.prefix, sys.prefix + '2'); "
    "os.symlink('/root', sys.prefix)",
    "a deep tree": "[(os.mkdir('d'), os.chdir('d')) for _ in range(5000)] "
    "if not os.chdir(sys.prefix) else None",
}


@pytest.mark.parametrize("aftermath", AFTERMATHS)
def test_a_tree_that_leads_out_is_refused(world, host, tmp_path, aftermath):
    """
    What the wheel leaves is not taken over, followed or run: the commit fails, nothing is placed.
    """
    number = 2 + list(AFTERMATHS).index(aftermath)
    # Once: the environment's Python starts more often.
    code = (
        "import contextlib, os, socket, sys\n"
        f"with contextlib.suppress(FileExistsError):\n    {AFTERMATHS[aftermath]}\n"
    )
    attack = Attack(
        world,
        tmp_path,
        f"{number}.0",
        {"hostile_after.py": code, "a.pth": "import hostile_after\n"},
    )

    with pytest.raises(BundleTampered) as caught:
        attack.send(host)

    assert "what a wheel installed is refused" in caught.value.why
    placed = f"ls -d {attack.venv} {layout.RELEASES}/{attack.bundle.digest} 2>/dev/null || true"
    assert world.inside(HOST, placed) == ""
    assert world.inside(HOST, f"ls -A {layout.VENVS} | grep -c '^[.]' || true").strip() == "0"
    assert_nothing_runs(world)


def test_a_wheel_that_writes_outside_is_refused_or_kept_inside(world, host, tmp_path):
    """
    Members of the archive with "..", absolute names and set-id bits.
    """
    attack = Attack(
        world,
        tmp_path,
        "50.0",
        {
            "../../../../hostile-mark": "x",
            "/root/hostile-mark": "x",
            "hostile-50.0.data/data/../../../../../../root/hostile-mark": "x",
        },
    )

    with contextlib.suppress(DeployError):
        attack.send(host)

    assert marks(world) == []
    assert_nothing_runs(world)


def test_without_the_sandbox_the_wheel_is_root(world, host, tmp_path):
    """
    Negative control: with a host program that runs builds plainly, the same wheel marks the host
    as user 0.
    """
    package = tmp_path / "host"
    shutil.copytree(ROOT / "deploy" / "host", package)
    with (package / "bundle" / "sandbox.py").open("a") as source:
        source.write(
            "\n\ndef sandboxed(system, argv, *, timeout_s, writable, readable=(), env=None):\n"
            "    return system.run(argv, timeout_s=timeout_s, env=env)\n"
        )
    program = tmp_path / "program"
    program.write_bytes(build_host_program(package))
    original = world.inside(HOST, f"cp {layout.HOST_PROGRAM} /root/original && echo kept")
    assert original.strip() == "kept"
    host.transport.put(program, "/root/changed", timeout_s=30)
    world.inside(HOST, f"install -m 755 /root/changed {layout.HOST_PROGRAM}")
    attack = Attack(
        world, tmp_path / "w", "60.0", {"hostile_payload.py": PAYLOAD, "hostile.pth": START}
    )
    try:
        with (
            ExecTrace(HOST, world.config, tmp_path) as trace,
            pytest.raises(BundleTampered, match="refused"),
        ):
            attack.send(host)
        assert of_bundles(trace)[0] != []
        assert "0" in world.inside(HOST, "cat /root/hostile-started").split()
    finally:
        world.inside(
            HOST,
            f"install -m 755 /root/original {layout.HOST_PROGRAM}; rm -f /root/changed; "
            "pkill -f '[h]ostile|[.]tmp-' || true",
        )
