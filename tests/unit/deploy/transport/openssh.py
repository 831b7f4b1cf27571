"""
A real sshd on the loopback interface, as root in a mount namespace of its own.

Skips where this machine has none: `SLIPWAY_SSHD` names one that is not in the PATH of root.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest

from deploy.inventory.schema import Host, Ssh
from tests.free_port import free_port

SSHD = os.environ.get("SLIPWAY_SSHD") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
# A namespace has the account of sshd and a home of root, whatever this machine has.
_SCRIPT = """\
set -e
mount --make-rprivate /
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/home /root
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
exec {sshd} -D -f {folder}/sshd_config -E {folder}/log
"""
_CONFIG = """\
ListenAddress {address}:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
"""


class OpensshServer:
    """
    Attributes:
        home: Home directory of root, as logins to this server see it.
    """

    def __init__(self, folder, *, config="", address="127.0.0.1"):
        if SSHD is None or os.getuid() != 0:
            pytest.skip("needs root and sshd (openssh-server, or SLIPWAY_SSHD)")
        folder.mkdir()
        self.folder, self.address, self.port = folder, address, free_port(address)
        self.home = folder / "home"
        self.home.mkdir()
        self.key = make_key(folder / "client")
        make_key(folder / "host_key")
        shutil.copy(f"{self.key}.pub", folder / "authorized_keys")
        text = _CONFIG.format(folder=folder, address=_bracketed(address), port=self.port)
        (folder / "sshd_config").write_text(text + config)
        accounts = [f"root:x:0:0::/root:{shutil.which('bash') or '/bin/sh'}"]
        accounts.append("sshd:x:990:65534::/run/sshd:/usr/sbin/nologin")
        (folder / "passwd").write_text("\n".join(accounts) + "\n")
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text(f"{self.name} {self.host_key}\n")

    @property
    def host_key(self):
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    @property
    def name(self):
        return f"[{self.address}]:{self.port}"

    def host(self, name="n1", **ssh):
        """
        Return this server as a host of a fleet.
        """
        settings = {
            "user": "root",
            "port": self.port,
            "key": self.key,
            "known_hosts": self.known_hosts,
            "connect_timeout": 60.0,
        }
        return Host.model_construct(
            name=name,
            address=self.address,
            groups=(),
            row="torch-2.13-cpu",
            ssh=Ssh.model_construct(**Ssh().model_dump() | settings | ssh),
            vars={},
        )

    def __enter__(self):
        script = _SCRIPT.format(folder=self.folder, sshd=SSHD)
        argv = ["unshare", "--mount", "sh", "-c", script]
        self._process = subprocess.Popen(argv, start_new_session=True, stderr=subprocess.PIPE)
        end_s = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None:
                pytest.skip(f"sshd does not start: {self._process.stderr.read().decode()}")
            assert time.monotonic() < end_s, "sshd does not listen"
        return self

    def __exit__(self, *_):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stderr.close()

    def _answers(self):
        try:
            with socket.create_connection((self.address, self.port), timeout=10) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False


def make_key(path, *, passphrase="", kind="ed25519"):
    """
    Make a key pair at *path*; return it.
    """
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)]
    subprocess.run(argv, check=True)
    return path


@contextlib.contextmanager
def ssh_agent(path):
    """
    Run an SSH agent with nothing in it, whose socket is *path*; yield the path.
    """
    argv = ["ssh-agent", "-D", "-a", str(path)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    while not _listens(path):
        assert process.poll() is None
        time.sleep(0.01)
    yield path
    process.kill()
    process.wait()


def _listens(path):
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def add_to_agent(key, passphrase, folder):
    """
    Add *key* to the agent of SSH_AUTH_SOCK.
    """
    ask = folder / "askpass"
    ask.write_text(f"#!/bin/sh\necho {passphrase}\n")
    ask.chmod(0o700)
    env = os.environ | {"SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"}
    subprocess.run(["ssh-add", "-q", str(key)], env=env, check=True)


def make_certificate(key, authority, *options):
    """
    Sign the public half of *key* by *authority* for hosts; return the certificate's file.

    Args:
        options: Further arguments of ssh-keygen, such as "-n", "n1,n2".
    """
    signed = ["ssh-keygen", "-q", "-s", str(authority), "-I", "test host", "-h", *options]
    subprocess.run([*signed, f"{key}.pub"], check=True)
    return key.with_name(f"{key.name}-cert.pub")


def _bracketed(address):
    return f"[{address}]" if ":" in address else address
