"""
A bare host as people have it, provisioned by the command line.

It is behind two jump hosts, is known by a certificate alone and takes a key with a passphrase; its
sshd has room for one session, its shell prints, sudo asks for a password, another python3 is first
in the PATH, and it has no route to anything but an HTTP proxy.  The tests build on each other.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.lab import lab
from deploy.lab.keys import host_key
from deploy.wiring.checkout import ROOT
from tests.lab.conftest import bring_up, say
from tests.lab.http_proxy import http_proxy
from tests.lab.own_lab import fleet_document, lab_config, write_fleet_file
from tests.unit.deploy.transport.openssh import (
    add_to_agent,
    make_certificate,
    make_key,
    ssh_agent,
)

HOST, JUMPS = "n3", ("n1", "n2")
PASSWORD, PASSPHRASE = "open Sesame 7", "Horse-7"
DISK_BYTES = 6 << 30  # sparse
FREE_BYTES = 1 << 30
TIMEOUT_S = 1500.0
# What it prints is before, after and in place of what programs of the host print.
PREPARE = """
set -e
useradd -m -s /bin/bash ops
echo 'ops:{password}' | chpasswd
printf 'echo "Welcome to {{gpu}}"\\ntrap "echo Bye" EXIT\\n' >/home/ops/.bashrc
install -d -m 700 -o ops -g ops /home/ops/.ssh
echo '{public}' >/home/ops/.ssh/authorized_keys
chown ops:ops /home/ops/.bashrc /home/ops/.ssh/authorized_keys
printf 'Defaults requiretty\\nops ALL=(ALL) ALL\\n' >/etc/sudoers.d/ops
chmod 440 /etc/sudoers.d/ops
echo '{certificate}' >/etc/ssh/ssh_host_ed25519_key-cert.pub
printf 'MaxSessions 1\\nHostCertificate /etc/ssh/ssh_host_ed25519_key-cert.pub\\n' \\
    >/etc/ssh/sshd_config.d/00-ways-in.conf
systemctl restart ssh
printf '#!/bin/sh\\necho "another Python: $*" >>/var/tmp/other-python; exit 1\\n' \\
    >/usr/local/bin/python3
chmod 755 /usr/local/bin/python3
sed -i '/^Gateway=/d' /etc/systemd/network/10-host0.network
ip route del default
"""
FILL = (
    "fallocate -l $(( $(df --output=avail -B1 / | tail -1) - {free} )) /var/filler; "
    "df --output=avail -B1 / | tail -1"
)
# Everything that provisioning could have left.
TRACES = (
    "ls -d /opt/slipway /etc/slipway /var/lib/slipway* /etc/apt/apt.conf.d/90slipway 2>/dev/null; "
    "id slipway 2>/dev/null; dpkg-query -W haproxy socat 2>/dev/null; :"
)


class Site:
    """
    The lab, and what the operator has: an agent, known_hosts and a fleet file.
    """

    def __init__(self, config, folder, proxy):
        self.config, self.folder, self.proxy = config, folder, proxy
        self.key = make_key(folder / "locked", passphrase=PASSPHRASE)
        self.known_hosts = folder / "known_hosts"

    def inside(self, host, script, timeout_s=60.0):
        done = lab.inside(host, ["sh", "-c", script], config=self.config, timeout_s=timeout_s)
        assert done.returncode == 0, f"{host}: {script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def prepare(self):
        public = Path(f"{self.key}.pub").read_text().strip()
        authority = make_key(self.folder / "authority")
        key = self.folder / HOST
        shutil.copy(f"{host_key(self.config, HOST)}.pub", f"{key}.pub")
        address = self.config.address(HOST)
        certificate = make_certificate(key, authority, "-n", address, "-V", "+1d").read_text()
        recorded = (self.config.keys / "known_hosts").read_text().splitlines()
        jumps = tuple(self.config.address(name) for name in JUMPS)
        lines = [line for line in recorded if line.startswith(jumps)]
        lines.append(f"@cert-authority {address} {Path(f'{authority}.pub').read_text().strip()}")
        self.known_hosts.write_text("\n".join(lines) + "\n")
        assert len(lines) == 3
        for name in JUMPS:
            self.inside(name, f"echo '{public}' >>/root/.ssh/authorized_keys")
        values = {"public": public, "certificate": certificate.strip(), "password": PASSWORD}
        self.inside(HOST, PREPARE.format(**values))

    def run(self, *words, wanted=0, with_proxy=True):
        """
        Run a task of the command line on the host, and return its document.
        """
        document = fleet_document(self.config, [HOST])
        jump = ",".join(f"root@{self.config.address(name)}" for name in JUMPS)
        document["ssh"] = {
            "user": "ops",
            "key": str(self.key),
            "known_hosts": str(self.known_hosts),
            "jump": jump,
            "sudo_password": True,
            "connect_timeout": "15s",
            "command_timeout": "60s",
        }
        document["mirrors"] = {"apt_proxy": self.proxy.url} if with_proxy else {}
        fleet = write_fleet_file(self.folder / "inventories" / "site.yml", document)
        done = subprocess.run(
            [sys.executable, "-m", "deploy.cli", *words, "--hosts", str(fleet), "--json"],
            cwd=ROOT,
            env=os.environ | {"SLIPWAY_SUDO_PASSWORD": PASSWORD},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        output = f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == wanted, output
        assert "Traceback" not in output
        assert PASSWORD not in output
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    config = lab_config("ways-in")
    folder = tmp_path_factory.mktemp("site")
    lab.down(progress=say, config=config)
    image = config.disk_image(HOST)
    image.parent.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)], check=True)
    try:
        bring_up(3, config)
        with (
            http_proxy(config.gateway) as proxy,
            ssh_agent(folder / "agent") as socket,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setenv("SSH_AUTH_SOCK", str(socket))
            made = Site(config, folder, proxy)
            add_to_agent(made.key, PASSPHRASE, folder)
            made.prepare()
            yield made
    finally:
        lab.down(progress=say, config=config)
        image.unlink(missing_ok=True)


def test_requiretty_is_refused_with_its_remedy(site):
    """
    No command of ours has a terminal.
    """
    document = site.run("provision", "--yes", wanted=4)
    [failure] = document["failed"]
    assert "tty" in failure["why"]
    assert "Defaults:ops !requiretty" in failure["fix"]
    site.inside(HOST, "echo 'Defaults:ops !requiretty' >>/etc/sudoers.d/ops")


def test_a_host_with_1_gib_free_is_refused_before_it_is_touched(site):
    """
    The error has the room that there is, and the room that the environment takes.
    """
    free = int(site.inside(HOST, FILL.format(free=FREE_BYTES)))
    assert abs(free - FREE_BYTES) < 16 << 20
    document = site.run("provision", "--yes", wanted=18)
    [failure] = document["failed"]
    shown = r"/opt/slipway has 10[12]\d\.\dMiB free, the Python environment takes 1\.\dGiB"
    assert re.fullmatch(shown, failure["why"])
    assert document["changes"] == []
    assert site.inside(HOST, TRACES) == ""
    site.inside(HOST, "rm /var/filler")


def test_without_the_proxy_no_package_comes(site):
    """
    Negative control: the host has no route.
    """
    assert site.inside(HOST, "ip route show default") == ""
    document = site.run("provision", "--yes", wanted=4, with_proxy=False)
    [failure] = document["failed"]
    assert "haproxy" in failure["why"] or "apt" in failure["why"]
    assert site.proxy.asked == []


def test_it_is_provisioned_through_all_of_it(site):
    """
    The second run changes nothing, and everything else of the command line reaches the host too.
    """
    first = site.run("provision", "--yes")
    assert first["failed"] == []
    assert any(change["resource"] == "packages" for change in first["changes"])
    assert set(site.proxy.asked) == {site.config.address(HOST)}
    second = site.run("provision", "--yes")
    assert (second["changes"], second["failed"]) == ([], [])
    counts = f"{len(first['changes'])} changes in {first['took_s']:.0f} s, then 0 in "
    say(f"{counts}{second['took_s']:.1f} s; {second['commands']} commands in the second run")
    site.run("verify")
    [status] = site.run("status")["hosts"]
    assert status["reachable"]
    assert site.inside(HOST, "cat /var/tmp/other-python 2>/dev/null || :") == ""
