"""
A real ACME server on loopback: Debian's pebble, with pebble-challtestsrv as its DNS server.
"""

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path

from deploy.certificates.authority import CERTIFICATE, create_authority
from tests.free_port import free_port
from tests.unit.deploy.certificates.builders import NOW

PROGRAMS = ("pebble", "pebble-challtestsrv", "certbot")
PACKAGES = ("pebble", "certbot")
DEADLINE_S = 30.0


def missing_programs():
    return [program for program in PROGRAMS if shutil.which(program) is None]


class Pebble:
    """
    Args:
        folder: For its files.
        life_s: Validity of the certificates that it issues.

    Attributes:
        url: Of its directory.
        http_port: Port to which it connects for HTTP-01; a real server takes 80.
        trust: PEM file of the authorities of its own certificate and of those that it issues.
    """

    def __init__(self, folder, *, life_s=90 * 86400):
        self.folder = folder
        folder.mkdir()
        self.port, management, self.http_port, tls_port, dns, self._dns_control = (
            free_port() for _ in range(6)
        )
        self.url = f"https://127.0.0.1:{self.port}/dir"
        authority = create_authority(folder / "slipway-own", "pebble", NOW)
        chain, key = _split(authority.issue(("127.0.0.1",), NOW).pem.reveal())
        (folder / "own.pem").write_text(chain)
        (folder / "own.key").write_text(key)
        config = {
            "listenAddress": f"127.0.0.1:{self.port}",
            "managementListenAddress": f"127.0.0.1:{management}",
            "certificate": str(folder / "own.pem"),
            "privateKey": str(folder / "own.key"),
            "httpPort": self.http_port,
            "tlsPort": tls_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": False,
            "certificateValidityPeriod": life_s,
        }
        (folder / "pebble.json").write_text(json.dumps({"pebble": config}))
        self._processes = []
        try:
            self._run(
                *("pebble-challtestsrv", "-http01", "", "-https01", "", "-tlsalpn01", ""),
                *("-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""),
                *("-dns01", f"127.0.0.1:{dns}", "-management", f"127.0.0.1:{self._dns_control}"),
            )
            self._run(
                *("pebble", "-config", str(folder / "pebble.json")),
                *("-dnsserver", f"127.0.0.1:{dns}"),
            )
            own = folder / "slipway-own" / CERTIFICATE
            client = ssl.create_default_context(cafile=own)
            roots = self._get(f"https://127.0.0.1:{management}/roots/0", client)
        except BaseException:
            self.close()
            raise
        self.trust = folder / "trust.pem"
        self.trust.write_text(own.read_text() + roots)

    def _run(self, *argv):
        # certbot 2.1 repeats a request once only, and pebble refuses nonces at random by default.
        env = os.environ | {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
        log = (self.folder / f"{argv[0]}.log").open("wb")
        self._processes.append(subprocess.Popen(argv, stdout=log, stderr=log, env=env))
        log.close()

    def _get(self, url, context):
        until_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5, context=context) as answer:
                    return answer.read().decode()
            except OSError:
                if time.monotonic() > until_s or any(p.poll() is not None for p in self._processes):
                    raise
                time.sleep(0.05)

    def control(self, path, **document):
        """
        Change a record of the DNS server.
        """
        url = f"http://127.0.0.1:{self._dns_control}/{path}"
        with urllib.request.urlopen(url, json.dumps(document).encode(), timeout=5) as answer:
            assert answer.status == 200

    def point(self, name, *addresses):
        """
        Let *name* resolve to *addresses*.
        """
        with contextlib.suppress(OSError):
            self.control("clear-a", host=f"{name}.")
        self.control("add-a", host=f"{name}.", addresses=list(addresses))

    @property
    def dns_control(self):
        return f"http://127.0.0.1:{self._dns_control}"

    def close(self):
        for process in self._processes:
            process.kill()
            process.wait()


def _split(pem):
    chain, begin, key = pem.partition("-----BEGIN PRIVATE KEY-----")
    return chain, begin + key


def files_below(folder: Path):
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
