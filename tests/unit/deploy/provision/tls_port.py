"""
A real HAProxy with TLS, configured as by `inv provision`, and the host program beside it.
"""

import hashlib
import json
import socket
import ssl
import subprocess
import threading

from deploy.certificates.authority import CERTIFICATE, create_authority
from deploy.host import certificate, layout
from deploy.host.protocol import Call, CertificateSet
from deploy.host.system import System
from deploy.inventory.schema import Tls
from tests.unit.deploy.certificates.builders import NOW
from tests.unit.deploy.provision.public_port import (
    DEADLINE_S,
    PUBLIC,
    PublicPort,
    post,
    read_answer,
)

NAMES = ("localhost", "127.0.0.1")


class TlsPort(PublicPort):
    """
    Args:
        folder: Short path; it becomes the root of a host.

    Attributes:
        system: The host.
        authority: Signs its certificates.
    """

    def __init__(self, folder, **changes):
        self.root = folder
        self.authority = create_authority(folder / "slipway-ca", "test", NOW)
        self.system = System(layout.Layout(str(folder)))
        paths = self.system.layout
        for path in (paths.run, paths.state, paths.certificates, paths.boot_id.parent):
            path.mkdir(parents=True)
        paths.boot_id.write_text("boot-1\n")
        paths.certificate.write_text(self.issue())
        paths.certificate.chmod(0o600)
        paths.acme_map.write_text("")
        edit = changes.pop("edit", None)

        def with_path(text):
            text = text.replace(layout.CERTIFICATE, str(paths.certificate))
            text = text.replace(layout.ACME_MAP, str(paths.acme_map))
            return edit(text) if edit else text

        tls = changes.pop("tls", Tls(kind="internal", authority=folder / "slipway-ca"))
        changes = {"tls": tls, "edit": with_path, "connections_per_source": 256} | changes
        super().__init__(paths.run, **changes)
        paths.host_config.write_text(json.dumps({"port": self.port, "tls": True}))
        self.client = ssl.create_default_context(cafile=folder / "slipway-ca" / CERTIFICATE)

    def issue(self, names=NAMES):
        return self.authority.issue(names, NOW).pem.reveal()

    def install(self, pem, replaces=None):
        request = CertificateSet(pem=pem, replaces=replaces)
        return certificate.install(self.system, Call(actor="test"), request)

    def restart(self):
        self._process.kill()
        self._process.communicate()
        self._process = subprocess.Popen(
            [*self._process.args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._wait_until("UP")

    def plain(self, source=PUBLIC):
        return super().connect(source)

    def connect(self, source=PUBLIC):
        client = socket.create_connection(
            ("127.0.0.1", self.port), DEADLINE_S, source_address=(source, 0)
        )
        return self.client.wrap_socket(client, server_hostname="localhost")

    def shown(self):
        """
        Return the SHA-256 of the certificate that a new connection gets.
        """
        with self.connect() as client:
            return hashlib.sha256(client.getpeercert(binary_form=True)).hexdigest()

    def curl(self, *arguments):
        """
        Return curl's output for arguments after those for TLS; `URL` stands for /generate.
        """
        url = f"https://localhost:{self.port}/generate"
        argv = ["curl", "--silent", "--cacert", str(self.root / "slipway-ca" / CERTIFICATE)]
        argv += [url if argument == "URL" else argument for argument in arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=2 * DEADLINE_S)


class Clients:
    """
    Clients that send requests until `stop`: some on one connection, some on a new one for each.

    Attributes:
        answers: Status of each request, 0 without an answer.
    """

    def __init__(self, port, *, kept=2, fresh=2):
        self.answers, self._port, self._stopping = [], port, threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(n < kept,)) for n in range(kept + fresh)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        return [status for status in self.answers if status != 200]

    def _run(self, is_kept):
        client = None
        while not self._stopping.wait(0.005):
            try:
                client = client or self._port.connect()
                client.sendall(post(b"{}"))
                status = read_answer(client)[0]
            except OSError:
                status = 0
            self.answers.append(status)
            if client is not None and (not is_kept or status == 0):
                client.close()
                client = None
        if client is not None:
            client.close()
