"""
A real etcd on this machine for a drill: one member over TLS, ended with the drill.
"""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from deploy.certificates.authority import ephemeral_authority
from deploy.errors import DeployError, PreconditionError
from deploy.foreign_text import quoted
from deploy.private_files import private_directory, write_private
from deploy.release.etcd import EtcdClient, EtcdSettings

PACKAGE = "etcd-server"  # of Debian and Ubuntu
_ADDRESS = "127.0.0.1"
_START_S = 30.0
_FETCH_S = 120.0
_LASTS = timedelta(days=2)


def find_etcd(folder: Path) -> str:
    """
    Return the path of etcd: the installed one, else that of the package, unpacked in *folder*.

    Raises:
        PreconditionError: It is not installed, and apt does not fetch it.
    """
    if installed := shutil.which("etcd"):
        return installed
    private_directory(folder)
    try:
        for argv in (["apt-get", "download", PACKAGE], ["sh", "-c", "dpkg-deb -x *.deb ."]):
            subprocess.run(
                argv, cwd=folder, capture_output=True, text=True, timeout=_FETCH_S, check=True
            )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise PreconditionError(
            "etcd is not installed on this machine",
            why=f"apt does not fetch it either: {quoted(said[-300:])}",
            fix=f"apt-get install {PACKAGE}",
        ) from error
    return str(folder / "usr/bin/etcd")


class EtcdServer:
    """
    Attributes:
        settings: How a client reaches it.
        pid: Of its process; None: it does not run.

    Args:
        program: Path of etcd.
        folder: For its data, log, certificate and key.
    """

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder
        private_directory(folder)
        self._ports = _free_ports()
        self._process: subprocess.Popen[bytes] | None = None
        now = datetime.now(UTC)
        authority = ephemeral_authority("slipway drill", now, _LASTS)
        pair = authority.issue((_ADDRESS,), now)
        self._ca, self._pem = folder / "ca.pem", folder / "etcd.pem"
        write_private(self._ca, authority.certificate.public_bytes(Encoding.PEM))
        write_private(self._pem, pair.pem.reveal())
        self.settings = EtcdSettings((f"https://{_ADDRESS}:{self._ports[0]}",), ca=self._ca)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def document(self, prefix: str) -> dict[str, Any]:
        """
        Return the section `state` of a fleet file whose keys begin with *prefix*.
        """
        return {
            "kind": "etcd",
            "endpoints": list(self.settings.endpoints),
            "ca": str(self._ca),
            "prefix": prefix,
        }

    def start(self) -> None:
        """
        Start it and wait until it answers.  It ends with the thread that calls this.

        Raises:
            PreconditionError: It does not start.
        """
        with (self._folder / "etcd.log").open("wb") as log:
            self._process = subprocess.Popen(
                # A drill that is killed leaves no etcd.
                ["setpriv", "--pdeathsig", "KILL", self._program, *self._flags()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                start_new_session=True,  # control-C is for the drill, which still needs it
            )
        end_s = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end_s:
                self.stop()
                raise PreconditionError(
                    "etcd does not start on this machine",
                    why=quoted((self._folder / "etcd.log").read_text(errors="replace")[-400:]),
                    fix=f"try {self._program} --version; or drill without --state etcd",
                )
            time.sleep(0.1)

    def stop(self) -> None:
        """
        End it; one that has ended is no error.
        """
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _flags(self) -> list[str]:
        client, peer = (f"//{_ADDRESS}:{port}" for port in self._ports)
        values = {
            "data-dir": self._folder / "data",
            "cert-file": self._pem,
            "key-file": self._pem,
            "listen-client-urls": f"https:{client}",
            "advertise-client-urls": f"https:{client}",
            "listen-peer-urls": f"http:{peer}",
            "initial-advertise-peer-urls": f"http:{peer}",
            "initial-cluster": f"default=http:{peer}",
        }
        return [f"--{name}={value}" for name, value in values.items()]

    def _answers(self) -> bool:
        with contextlib.suppress(DeployError), contextlib.closing(EtcdClient(self.settings)) as one:
            one.txn(ranges=["x"])
            return True
        return False


@contextlib.contextmanager
def etcd_server(folder: Path) -> Iterator[EtcdServer]:
    """
    Yield an etcd that runs, with everything it needs in *folder*.

    Raises:
        PreconditionError: There is none on this machine, or it does not start.
    """
    server = EtcdServer(find_etcd(folder / "package"), folder / "member")
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _free_ports() -> tuple[int, int]:
    with socket.create_server((_ADDRESS, 0)) as one, socket.create_server((_ADDRESS, 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]
