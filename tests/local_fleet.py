"""
A fleet of hosts that run the real host program, for the tests of releases and rollbacks.
"""

from contextlib import contextmanager

from deploy.host.layout import SLOTS
from deploy.host.protocol import Status
from deploy.release import host_commands
from deploy.release.observe import observed
from deploy.release.rollback import roll_back
from deploy.transport.client import HostClient
from tests.builders import make_policy
from tests.local_host import local_hosts, place_release, serve
from tests.simulated_clock import SimulatedClock

LIMITS = host_commands.Limits(start_s=90, drain_s=20, golden_s=60, keep=3)
DIGESTS = {f"b{number}": f"{number}" * 64 for number in range(10)}
NAMES = {digest: name for name, digest in DIGESTS.items()}


class LocalFleet:
    """
    Hosts, a client for each, and the clock that they share with the controller.

    Attributes:
        requests_per_s, errors_per_s: Answers of each canary in each second of the clock.
        silent: Hosts whose canary gets requests and answers none.
        on_sleep: Called after each second that passes.
    """

    def __init__(self, transports):
        self.transports = transports
        self.requests_per_s, self.errors_per_s = 5, 0
        self.silent = set()
        self.on_sleep = lambda: None
        self.clock = SimulatedClock(self._pass)
        self.clients = {
            name: HostClient(transport, actor="me@desk", sudo=False)
            for name, transport in transports.items()
        }

    def __getitem__(self, name):
        return self.transports[name]

    def system(self, name):
        return self.transports[name].system

    def serve(self, bundle, version=None, slot="blue"):
        """
        Let every host serve *bundle* alone, recorded as good.
        """
        for transport in self.transports.values():
            serve(transport.system, DIGESTS[bundle], version or bundle.replace("b", "v"), slot)

    def place(self, bundle, name=None):
        """
        Put *bundle* on the disk of every host, or of one.
        """
        for host in [name] if name else self.transports:
            system = self.system(host)
            if not system.layout.release(DIGESTS[bundle]).exists():
                place_release(system, DIGESTS[bundle], bundle.replace("b", "v"))

    def observed(self):
        return {
            name: observed(name, client.call(Status())) for name, client in self.clients.items()
        }

    def roll_back(self, plan, report=lambda event: None, **options):
        """
        Do *plan* as `inv rollback` does, and return its outcome.
        """
        return roll_back(
            plan,
            release="r-back",
            owner="me",
            clients=self.clients,
            policy=make_policy(),
            limits=LIMITS,
            clock=self.clock,
            report=report,
            **options,
        )

    def serves(self, name):
        """
        Return the share of each bundle in the host's traffic, in percent.
        """
        system = self.system(name)
        return {
            NAMES[system.linked(slot)]: weight
            for slot, weight in system.proxy.weights.items()
            if weight
        }

    def running(self, name):
        """
        Return the bundles whose slots run.
        """
        system = self.system(name)
        return {NAMES[system.linked(s)] for s in SLOTS if system.unit_of(s).active == "active"}

    def good(self, name):
        return [NAMES[good.bundle] for good in self.observed()[name].good]

    def lease_owner(self, name):
        return self.observed()[name].lease_owner

    def events(self, name):
        """
        Return the steps of the events in the journal of a host.
        """
        from deploy.host.journal import Journal
        from deploy.host.records import Event, from_line

        records = [from_line(line) for _, line in Journal(self.system(name)).lines()]
        return [record.step for record in records if isinstance(record, Event)]

    def touched(self, name):
        """
        Return the verbs that this host was asked for, beside reading it.
        """
        return [verb for verb in self[name].verbs() if verb not in ("status", "measure")]

    def _pass(self, seconds):
        for name, transport in self.transports.items():
            system = transport.system
            system.clock.pass_s(seconds)
            for slot, weight in system.proxy.weights.items():
                if weight and self.serves(name) and weight < 100:
                    requests = round(self.requests_per_s * seconds)
                    if name in self.silent:
                        system.proxy.servers[slot].counters["stot"] += requests
                    else:
                        system.answer(slot, requests, round(self.errors_per_s * seconds))
        self.on_sleep()


@contextmanager
def local_fleet(*names, serving="b1"):
    """
    Yield a fleet of *names*, each serving *serving* from blue.
    """
    with local_hosts(*names) as transports:
        fleet = LocalFleet(transports)
        if serving:
            fleet.serve(serving)
        yield fleet
