"""
A lab of its own for what provisioning does to hosts, and the fleet that describes it.
"""

import contextlib

from deploy.errors import LabError
from deploy.inventory.load import load_fleet
from deploy.lab import lab
from tests.lab.own_lab import fleet_document, write_fleet_file

HOSTS = ("n1", "n2", "n3", "n4")
TOKEN = "first-Token.1"
ENV = {"SLIPWAY_TEST_TOKEN": TOKEN}


class World:
    """
    Hosts and their fleet, with the hands that break them.
    """

    def __init__(self, config, root, hosts=HOSTS):
        self.config, self.root, self.hosts = config, root, hosts
        (root / "inventories").mkdir()

    def fleet(self, limit=None, row=None, **changes):
        """
        Return the lab's fleet, but for *row* and *changes*: {"service": {...}, "ssh": {...}}.
        """
        data = fleet_document(
            self.config,
            self.hosts,
            ssh={"connect_timeout": "5s", "command_timeout": "30s", "keepalive": "2s"},
            secrets={"token": {"env": "SLIPWAY_TEST_TOKEN"}},
            service={"api_tokens": ["token"]},
        )
        if row is not None:
            data["row"] = row
        for section, keys_ in changes.items():
            data[section] = data.get(section, {}) | keys_
        write_fleet_file(self.root / "inventories" / "lab.yml", data)
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
