"""
A running HAProxy that lost its socket, or was stopped: the commands of `inv provision`, with a
real HAProxy as Debian's unit runs it.
"""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.host import layout
from deploy.host.slots import systemd
from deploy.provision.operations import service_commands
from deploy.provision.unit_resources import EnabledService
from tests.local_host import short_directory
from tests.unit.deploy.provision.builders import find, make_facts, make_resources
from tests.unit.deploy.provision.public_port import PROGRAM

RESOURCES = make_resources()
GOOD = make_facts(RESOURCES)
SERVICE = find(RESOURCES, layout.HAPROXY_UNIT)

# What Debian's unit does for each verb: USR2 to the main process is a reload.
SYSTEMCTL = """\
    #!/bin/sh
    echo "$@" >>{folder}/calls
    start() {{
        rm -f {folder}/pid
        {haproxy} -q -W -D -p {folder}/pid -f {folder}/haproxy.cfg
        # As READY of the unit: a signal that comes earlier is lost.
        until [ -s {folder}/pid ] && echo show info | {folder}/bin/socat - {address} >/dev/null 2>&1
        do sleep 0.02; done
    }}
    running() {{ kill -0 "$(cat {folder}/pid)" 2>/dev/null; }}
    case "$1" in
    enable | reset-failed) ;;
    restart)
        kill "$(cat {folder}/pid)"
        while running; do sleep 0.02; done
        start ;;
    reload-or-restart) if running; then kill -USR2 "$(cat {folder}/pid)"; else start; fi ;;
    *) exit 1 ;;
    esac
"""
SOCAT = """\
    #!{python} -IS
    import socket, sys
    client = socket.socket(socket.AF_UNIX)
    client.connect(sys.argv[2].partition(":")[2])
    client.sendall(sys.stdin.buffer.read())
    sys.stdout.buffer.write(b"".join(iter(lambda: client.recv(65536), b"")))
"""
CONFIG = """\
    global
        description {description}
        stats socket {socket} mode 600 level admin expose-fd listeners
    defaults
        mode http
        timeout connect 1s
        timeout client 1s
        timeout server 1s
    frontend public
        bind unix@{folder}/public.sock
        http-request return status 200
"""


class Service:
    """
    HAProxy under a small systemctl, in a directory of its own.
    """

    def __init__(self, folder):
        self.folder = folder
        self.resource = EnabledService(
            unit="haproxy.service", socket=str(folder / "run/haproxy.sock"), description="slipway 2"
        )
        (folder / "bin").mkdir()
        address = f"UNIX-CONNECT:{self.resource.socket}"
        self.write("bin/systemctl", SYSTEMCTL, haproxy=PROGRAM, address=address)
        self.write("bin/socat", SOCAT, python=sys.executable)
        (folder / "run").mkdir()
        self.describe("slipway 2")
        self.systemctl("reload-or-restart")

    def write(self, name, text, **values):
        path = self.folder / name
        path.write_text(textwrap.dedent(text).format(folder=self.folder, **values))
        path.chmod(0o755)

    def describe(self, description):
        self.write("haproxy.cfg", CONFIG, description=description, socket=self.resource.socket)

    def systemctl(self, verb):
        subprocess.run([self.folder / "bin/systemctl", verb], check=True)

    @property
    def verbs(self):
        return [line.split()[0] for line in (self.folder / "calls").read_text().splitlines()]

    def kill(self):
        process = int((self.folder / "pid").read_text())
        os.kill(process, signal.SIGTERM)
        while Path(f"/proc/{process}").exists():
            time.sleep(0.02)

    def facts(self, active="active"):
        unit = replace(GOOD.units[layout.HAPROXY_UNIT], active=active)
        path = GOOD.paths[layout.HAPROXY_SOCKET] if Path(self.resource.socket).exists() else None
        return replace(
            GOOD,
            units=GOOD.units | {self.resource.unit: unit},
            paths=GOOD.paths | {self.resource.socket: path},
            haproxy=None,
        )

    def apply(self, facts):
        """
        Run the commands as on a host, with fewer tries; return the last one's exit status.
        """
        env = os.environ | {"PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        (self.folder / "calls").write_text("")
        for command in service_commands(self.resource, facts):
            quick = command.replace("seq 100", "seq 20")
            done = subprocess.run(["sh", "-c", quick], env=env, capture_output=True, check=False)
            if done.returncode:
                break
        return done.returncode


@pytest.fixture
def service():
    if not Path(PROGRAM).exists():
        pytest.skip("haproxy is not installed: apt-get install haproxy")
    with short_directory() as name:
        running = Service(Path(name))
        yield running
        running.kill()


def lose_socket(service):
    """
    Remove the directory, as `rm -r /run/slipway` does, and make it again, as provisioning does.
    """
    Path(service.resource.socket).unlink()
    Path(service.resource.socket).parent.rmdir()
    Path(service.resource.socket).parent.mkdir()


def test_a_lost_socket_is_mended_by_a_restart_and_said(service):
    """
    `--check` says so too: the change is the difference.
    """
    lose_socket(service)
    facts = service.facts()
    assert service.resource.difference(facts).change == (
        f"restart, because {service.resource.socket} is gone"
    )
    assert service.apply(facts) == 0
    assert service.verbs == ["enable", "reset-failed", "restart"]
    assert Path(service.resource.socket).exists()


def test_a_reload_never_binds_a_lost_socket(service):
    """
    Negative control: the new worker inherits the listener that has no path any more.
    """
    lose_socket(service)
    present = replace(
        service.facts(), paths={service.resource.socket: GOOD.paths[layout.HAPROXY_SOCKET]}
    )
    assert service.apply(present) == 1
    assert service.verbs == ["enable", "reset-failed", "reload-or-restart"]
    assert not Path(service.resource.socket).exists()


def test_another_configuration_is_loaded_by_a_reload(service):
    """
    No connection is cut: the main process stays.
    """
    service.describe("slipway 1")
    service.systemctl("restart")
    before = (service.folder / "pid").read_text()
    service.describe("slipway 2")
    facts = replace(service.facts(), haproxy="slipway 1")
    assert service.resource.difference(facts).change == "reload"
    assert service.apply(facts) == 0
    assert (service.folder / "pid").read_text() == before


def test_a_stopped_haproxy_is_started(service):
    """
    Also after systemd has given up on it; the path of its socket means nothing then.
    """
    service.kill()
    for active in ("inactive", "failed", "activating"):
        assert service.resource.difference(service.facts(active)).change == "start"
    assert service.apply(service.facts("failed")) == 0
    assert service.verbs[-1] == "reload-or-restart"


def test_a_busy_haproxy_is_not_restarted():
    """
    It did not answer, but its socket has its path: a restart would cut what it serves.
    """
    facts = replace(GOOD, haproxy=None)
    assert SERVICE.difference(facts).change == "reload"
    assert not any(re.search(r" restart ", c) for c in service_commands(SERVICE, facts))


def test_a_masked_haproxy_is_refused_with_its_remedy():
    """
    Before anything is changed, whatever else differs.
    """
    masked = replace(GOOD.units[layout.HAPROXY_UNIT], load="masked", active="inactive")
    facts = replace(GOOD, units=GOOD.units | {layout.HAPROXY_UNIT: masked}, haproxy=None)
    refusal = SERVICE.refusal(facts)
    assert layout.HAPROXY_UNIT in refusal.why
    assert refusal.fix == f"on the host: {systemd.unmask_command(layout.HAPROXY_UNIT)}"
