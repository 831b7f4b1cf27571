"""
apt on a booted host with something in its way: a held lock, a lost connection, an interrupted dpkg,
a broken source.  Only packages and their sources are provisioned here.
"""

import time

import pytest

from deploy.bundle.host_program import build_host_program
from deploy.host import layout
from deploy.provision import EventKind
from deploy.provision.apt_packages import Packages
from deploy.provision.fleet_specs import resource_sets
from deploy.provision.probe import pack_program
from deploy.provision.report_builder import ReportBuilder
from deploy.provision.resource_set import ResourceSet
from deploy.provision.supervise import WorkerInput, run_worker
from deploy.provision.worker_request import HostRequest, WorkerRequest
from tests.lab.own_lab import booted_lab
from tests.lab.provision_fixtures import ENV, World

DEADLINE_S = 900.0
LISTS_LOCK = "/var/lib/apt/lists/lock"
VENDOR = "/etc/apt/sources.list.d/vendor.list"
# A repository without a signature, as one whose key was rotated looks to apt.
UNSIGNED = f"""
mkdir -p /srv/vendor && cd /srv/vendor && : >Packages && echo 'Origin: vendor' >Release
echo 'deb file:/srv/vendor ./' >{VENDOR}
"""
HOLD = f"""
systemd-run --quiet --unit=apt-daily-test python3 -c '
import fcntl, time
file = open("{LISTS_LOCK}", "w")
fcntl.lockf(file, fcntl.LOCK_EX)
time.sleep(3600)'
"""
# socat is unpacked and not configured, as after a power cut.
INTERRUPT = """
cd /tmp && apt-get -q download socat && apt-get -q -y remove socat && dpkg --unpack socat_*.deb
"""
# apt begins its transaction, and waits at the first dpkg.
SLOW = """
touch /run/hold-dpkg
echo 'DPkg::Pre-Invoke {"while test -e /run/hold-dpkg; do sleep 1; done";};' \\
    >/etc/apt/apt.conf.d/99slow
"""
SHOW = "cd /etc/apt && cat sources.list sources.list.d/* 2>/dev/null || :"
STARTS = f"journalctl -b -o cat -u {layout.APT_UNIT} | grep -c '^Started ' || :"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with booted_lab("apt", 1) as config:
        yield World(config, tmp_path_factory.mktemp("fleet"), hosts=("n1",))


def on(world, script):
    """
    Return what *script* prints on the host; apt takes its time there.
    """
    return world.inside("n1", script, timeout_s=300.0)


def change(world, when=lambda _: None, **sections):
    """
    Provision the packages and sources of the host; *when* is called with every event.
    """
    fleet = world.fleet(**sections)
    wanted = resource_sets(fleet, build_host_program(), ENV, is_check=True)["n1"]
    last = next(n for n, one in enumerate(wanted.placed) if isinstance(one, Packages))
    resources = ResourceSet(requirements=(), placed=wanted.placed[: last + 1], running=())
    request = HostRequest.of(fleet.hosts[0], resources, 0)
    builder = ReportBuilder(["n1"], when)
    run_worker(
        WorkerRequest(packed_program=pack_program(), hosts=(request,)),
        builder,
        time.monotonic() + DEADLINE_S,
        WorkerInput(),
    )
    return builder.report(check=False, took_s=0.0)


def once(text, then):
    """
    Return a callback for events that calls *then* at the first one that waits with *text*.
    """
    texts = []

    def when(event):
        if event.kind is EventKind.WAITING and text in (event.change or "") and not texts:
            texts.append(event.change)
            then()

    when.texts = texts
    return when


def starts(world):
    return int(on(world, STARTS))


def test_a_held_lists_lock_is_waited_for_and_a_broken_source_stops_nothing(world):
    """
    The holder is named; a vendor's unsigned source is a warning.
    """
    on(world, HOLD)
    on(world, UNSIGNED)
    release = once(LISTS_LOCK, lambda: on(world, "systemctl stop apt-daily-test"))

    report = change(world, release)

    assert report.ok == ("n1",), report.failed
    assert "of apt-daily-test.service" in release.texts[0]
    [warning] = report.warnings
    assert (warning.host, VENDOR in warning.about) == ("n1", True)
    assert "vendor" in warning.why
    on(world, "dpkg-query -W -f '${db:Status-Status}' haproxy | grep -qx installed")
    on(world, f"rm -r {VENDOR} /srv/vendor")


def test_a_transaction_survives_its_connection_and_is_followed(world):
    """
    sshd's process dies in the middle; the next run starts no second transaction.
    """
    on(world, "apt-get -q -y purge socat haproxy")
    before = starts(world)
    on(world, SLOW)
    kill = once("changing packages", lambda: on(world, "pkill -f '^sshd: root'"))
    lost = change(world, kill)
    [failure] = lost.failed
    assert failure.error == "TransportError"
    assert on(world, f"systemctl is-active {layout.APT_UNIT}").strip() == "active"

    followed = once(
        "transaction of an earlier run",
        lambda: on(world, "rm /run/hold-dpkg"),
    )
    report = change(world, followed)

    assert report.ok == ("n1",), report.failed
    assert followed.texts
    assert starts(world) == before + 1
    assert change(world).changes == ()


def test_an_interrupted_dpkg_is_completed(world):
    """
    A package that is unpacked and not configured does not stop the others.
    """
    on(world, INTERRUPT)
    completed = once("completing an interrupted dpkg", lambda: None)
    report = change(world, completed)
    assert report.ok == ("n1",), report.failed
    assert completed.texts
    on(world, 'test -z "$(dpkg --audit)" && dpkg-query -W socat')


def test_sources_change_only_when_apt_reads_the_new_ones(world):
    """
    A wrong mirror leaves the host's sources; a right one replaces them, and they come back.
    """
    old = on(world, SHOW)
    uri = on(
        world, "apt-get indextargets --format '$(SITE) $(REPO_URI)' | grep -m1 debian"
    ).split()[-1]
    source = {"uris": [uri], "suites": ["bookworm"], "components": ["main"]}

    wrong = change(world, mirrors={"apt": [source | {"uris": [f"{uri}nothing/"]}]})
    assert [failure.error for failure in wrong.failed] == ["CommandFailed"]
    assert on(world, SHOW) == old

    foreign = change(world, mirrors={"apt": [source | {"suites": ["noble"]}]})
    assert "suite noble is of Ubuntu 24.04" in foreign.failed[0].why

    right = change(world, mirrors={"apt": [source]})
    assert right.ok == ("n1",), right.failed
    on(world, "! test -e /etc/apt/sources.list && apt-get indextargets | grep -q bookworm")
    back = change(world)
    assert back.ok == ("n1",), back.failed
    assert on(world, SHOW) == old
