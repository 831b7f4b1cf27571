"""
A real etcd over TLS on this machine, from Debian's package etcd-server.
"""

import contextlib
import subprocess
import time

import pytest
from cryptography.x509.oid import NameOID

from deploy.drill.etcd_server import find_etcd
from deploy.errors import DeployError, PreconditionError
from deploy.release.etcd import EtcdClient, EtcdSettings
from tests.free_port import free_port
from tests.unit.deploy.release.webhook_server import make_certificate

# With its users and passwords on, etcd's gateway refuses client certificates with a common name.
OF_CLIENTS = NameOID.ORGANIZATION_NAME


def etcd_program(folder):
    """
    Return the path of etcd: the installed one, else that of the package, unpacked in *folder*.
    """
    try:
        return find_etcd(folder / "package")
    except PreconditionError as error:
        pytest.skip(str(error))


class EtcdProcess:
    """
    Attributes:
        settings: How a client reaches it, with a certificate of its own.
    """

    def __init__(self, program, folder):
        self._program, self._folder = program, folder
        self._certificate, self._key = make_certificate(folder, OF_CLIENTS)
        self._ports = free_port(), free_port()
        self._process = None
        self.settings = EtcdSettings(
            endpoints=(f"https://127.0.0.1:{self._ports[0]}",),
            ca=self._certificate,
            cert=self._certificate,
            key=self._key,
        )

    def client(self, within_s=60.0):
        return EtcdClient(self.settings, within_s=within_s)

    def start(self):
        client, peer = (f"//127.0.0.1:{port}" for port in self._ports)
        tls = [
            "--client-cert-auth",
            *(f"--trusted-ca-file={self._certificate}", f"--cert-file={self._certificate}"),
            f"--key-file={self._key}",
        ]
        urls = {
            "listen-client-urls": f"https:{client}",
            "advertise-client-urls": f"https:{client}",
            "listen-peer-urls": f"http:{peer}",
            "initial-advertise-peer-urls": f"http:{peer}",
            "initial-cluster": f"default=http:{peer}",
        }
        with (self._folder / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._program,
                    f"--data-dir={self._folder / 'data'}",
                    "--unsafe-no-fsync" if self._has_unsafe() else "--snapshot-count=10000",
                    *tls,
                    *(f"--{name}={url}" for name, url in urls.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/bin:/bin", "ETCD_UNSUPPORTED_ARCH": "arm64"},
            )
        until_s = time.monotonic() + 120
        while True:
            with contextlib.suppress(DeployError), contextlib.closing(self.client()) as client:
                client.txn(ranges=["x"])
                return self
            assert self._process.poll() is None, (self._folder / "etcd.log").read_text()[-2000:]
            assert time.monotonic() < until_s, (self._folder / "etcd.log").read_text()[-2000:]
            time.sleep(0.05)

    def stop(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._process = None

    def _has_unsafe(self):
        done = subprocess.run([self._program, "--help"], capture_output=True, text=True)
        return "unsafe-no-fsync" in done.stdout + done.stderr


@contextlib.contextmanager
def etcd_process(folder):
    etcd = EtcdProcess(etcd_program(folder), folder)
    try:
        yield etcd.start()
    finally:
        etcd.stop()
