"""
Where things lie on the host.  The same values as `deploy/layout.py`; a test compares the two.
"""

from __future__ import annotations

from pathlib import Path

SLOTS = ("blue", "green")
USER = "slipway"
UNIT = "slipway-runtime@{slot}.service"
HAPROXY_UNIT = "haproxy.service"
BACKEND = "runtime"


class Layout:
    """
    The paths of one host.

    Args:
        root: What stands in front of each path; tests give a temporary directory.
    """

    def __init__(self, root: str = "/") -> None:
        self.root = root
        self.opt = self._at("/opt/slipway")
        self.bin = self.opt / "bin"
        self.uv = self.bin / "uv"
        self.host_tool = self.bin / "slipway-host.pyz"
        self.wheelhouse = self.opt / "wheelhouse"
        self.venvs = self.opt / "venvs"
        self.releases = self.opt / "releases"
        self.state = self._at("/var/lib/slipway")
        self.models = self.state / "models"
        self.blobs = self.models / "blobs"
        self.incoming = self.state / "incoming"
        self.slot_links = self.state / "slots"
        self.journal = self.state / "journal.jsonl"
        self.lease = self.state / "lease.json"
        self.lock = self.state / "lock"  # held by a verb for as long as it changes something
        self.stage_lock = self.state / "stage.lock"  # held while contents are verified and placed
        self.haproxy_state = self.state / "haproxy.state"
        self.etc = self._at("/etc/slipway")
        self.runtime_config = self.etc / "runtime.yml"
        self.environment = self.etc / "environment"
        self.allowed_signers = self.etc / "allowed_signers"
        self.host_config = self.etc / "host.json"
        self.run = self._at("/run/slipway")
        self.haproxy_socket = self.run / "haproxy.sock"
        self.boot_id = self._at("/proc/sys/kernel/random/boot_id")

    def _at(self, path: str) -> Path:
        return Path(self.root) / path.lstrip("/")

    def runtime_socket(self, slot: str) -> Path:
        """
        Return the Unix socket that the runtime of *slot* listens on.
        """
        return self.run / slot / "runtime.sock"

    def release(self, bundle: str) -> Path:
        """
        Return the directory of the release of *bundle*; it exists only once it is whole.
        """
        return self.releases / bundle

    def slot_link(self, slot: str) -> Path:
        """
        Return the symlink of *slot*, which leads to the release that runs there.
        """
        return self.slot_links / slot


def unit(slot: str) -> str:
    """
    Return the systemd unit of *slot*.
    """
    return UNIT.format(slot=slot)
