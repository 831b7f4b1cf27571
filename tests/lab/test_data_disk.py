"""
A host whose HAProxy belongs to somebody else, and slipway's directories on another disk.

The tests build on each other in this order.
"""

import pytest

from deploy.host import layout
from deploy.lab import lab
from deploy.provision import provision
from deploy.verify import verify
from tests.lab.conftest import say
from tests.lab.own_lab import booted_lab
from tests.lab.provision_fixtures import ENV, World

STORAGE = {"storage": {"root": "/data/slipway"}}
ASK = (
    "python3 -c 'import sys, urllib.error, urllib.request as r\n"
    "try: print(r.urlopen(sys.argv[1]).status)\n"
    "except urllib.error.HTTPError as e: print(e.code)' http://[::1]:8000/nosuch"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with booted_lab("data-disk", 1) as config:
        yield World(config, tmp_path_factory.mktemp("fleet"))


def run(world, **changes):
    return provision(world.fleet("n1", **changes), progress=lambda _: None, env=ENV)


def test_a_foreign_configuration_stays(world):
    """
    The host is refused, with the command that the next test follows.
    """
    world.inside("n1", "mkdir -p /etc/haproxy; echo 'frontend shop' > /etc/haproxy/haproxy.cfg")
    [failure] = run(world, **STORAGE).failed
    assert "/etc/haproxy/haproxy.cfg is another program's" in failure.why
    assert "mv /etc/haproxy/haproxy.cfg" in failure.fix
    assert world.inside("n1", "cat /etc/haproxy/haproxy.cfg") == "frontend shop\n"
    assert world.inside("n1", "ls /data /opt/slipway 2>/dev/null || :") == ""


def test_its_directories_lie_on_the_disk(world, tmp_path):
    """
    A bare host is provisioned there at once; the second run changes nothing.
    """
    world.inside("n1", "mv /etc/haproxy/haproxy.cfg /etc/haproxy/haproxy.cfg.before-slipway")
    first = run(world, **STORAGE)
    assert first.failed == ()
    assert "venvs" in world.inside("n1", "ls /data/slipway/opt").split()
    assert world.inside("n1", "ls -A /data/slipway/lib") == world.inside(
        "n1", f"ls -A {layout.STATE}"
    )
    second = run(world, **STORAGE)
    assert (second.changes, second.failed, second.commands) == ((), (), {"n1": 1})
    report = verify(world.fleet("n1", **STORAGE), junit=tmp_path / "junit.xml", progress=say)
    assert report.failed == ()


def test_it_answers_over_ipv6(world):
    assert world.inside("n1", ASK) == "404\n"


def test_it_is_mounted_again_after_a_boot(world, tmp_path):
    """
    Before anything of slipway starts.
    """
    lab.crash("n1", progress=say, config=world.config)
    lab.start("n1", progress=say, config=world.config)
    report = verify(world.fleet("n1", **STORAGE), junit=tmp_path / "junit.xml", progress=say)
    assert report.failed == ()
    assert run(world, **STORAGE).changes == ()


def test_the_mount_hides_no_data(world):
    """
    Negative control: of a host that has its data under /opt/slipway itself.
    """
    units = "opt-slipway.mount var-lib-slipway.mount"
    world.inside("n1", f"systemctl stop haproxy slipway-deadman.timer; umount {layout.OPT}")
    world.inside("n1", f"systemctl stop {units}; mkdir {layout.OPT}/venvs")
    [failure] = run(world, **STORAGE).failed
    assert "/opt/slipway has files already" in failure.why
