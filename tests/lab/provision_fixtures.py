"""
A lab of its own for what provisioning does to hosts, and the fleet that describes it.
"""

import contextlib
import os

import yaml

from deploy.errors import LabError
from deploy.inventory.load import load_fleet
from deploy.lab import lab
from deploy.lab.config import LabConfig

HOSTS = ("n1", "n2", "n3", "n4")
TOKEN = "first-Token.1"
ENV = {"SLIPWAY_TEST_TOKEN": TOKEN}


def lab_config(name="lab-provision", bridge="slipp", prefix="10.77.79"):
    default = LabConfig.from_env(os.environ)
    return LabConfig(
        directory=default.directory.with_name(name),
        bases=default.bases,
        bridge=bridge,
        prefix=prefix,
    )


class World:
    """
    Hosts and their fleet, with the hands that break them.
    """

    def __init__(self, config, root, hosts=HOSTS):
        self.config, self.root, self.hosts = config, root, hosts
        (root / "inventories").mkdir()

    def fleet(self, limit=None, **changes):
        """
        Return the lab's fleet, but for *changes*: {"service": {...}, "ssh": {...}}.
        """
        keys = self.config.keys
        data = {
            "row": "torch-2.13-cpu",
            "ssh": {
                "key": str(keys / "id_ed25519"),
                "known_hosts": str(keys / "known_hosts"),
                "connect_timeout": "5s",
                "command_timeout": "30s",
                "keepalive": "2s",
            },
            "secrets": {"token": {"env": "SLIPWAY_TEST_TOKEN"}},
            "service": {
                "device": "cpu",
                "precision": "fp32",
                "threads": 1,
                "api_tokens": ["token"],
            },
            "signing": {
                "identity": "lab@slipway",
                "key": str(keys / "signing_ed25519"),
                "allowed_signers": str(keys / "allowed_signers"),
            },
            "hosts": {name: {"address": self.config.address(name)} for name in self.hosts},
        }
        for section, keys_ in changes.items():
            data[section] = data.get(section, {}) | keys_
        path = self.root / "inventories" / "lab.yml"
        path.write_text(yaml.safe_dump(data))
        return load_fleet("lab", root=self.root, limit=limit)

    def inside(self, host, script, timeout_s=30.0):
        """
        Return what *script* prints on *host*, reached without its network.
        """
        argv = ["sh", "-c", script]
        done = lab.inside(host, argv, config=self.config, timeout_s=timeout_s)
        assert done.returncode == 0, f"{host}: {script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def commands_seen(self, host):
        """
        Return how many commands the host's sshd has started since it booted.
        """
        shown = self.inside(host, "journalctl -b -o cat -t sshd | grep -c 'Starting session' || :")
        return int(shown)

    def mend(self):
        """
        Make every host run and answer, whatever a test left.
        """
        for name in self.hosts:
            with contextlib.suppress(LabError):
                lab.thaw(name, config=self.config)
                lab.heal(name, config=self.config)
            if not _runs(name, self.config):
                lab.start(name, progress=print, config=self.config)


def _runs(name, config):
    return any(h.name == name and h.leader for h in lab.status(config=config).hosts)
