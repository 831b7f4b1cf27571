"""
The host program takes the requests that a fleet file leads to.
"""

from types import SimpleNamespace

from deploy.host.protocol import Call, LeaseAcquire
from deploy.host.rpc import encode_request, parse_request
from deploy.release import host_commands
from tests.unit.deploy.inventory.builders import make_fleet

LONGEST = {
    "release.drain_timeout": "7200s",
    "release.lease_ttl": "3600s",
    "service.start_timeout": "7200s",
}


class Client:
    """
    Reads each request as the host program does.
    """

    def call(self, request, *, timeout_s):
        assert timeout_s > request.timeout_s
        read, _ = parse_request(
            request.VERB, encode_request(request, Call(1, "r1", "ann")).decode()
        )
        assert read == request
        return SimpleNamespace(done=())


def test_the_longest_times_of_a_fleet_file_are_taken_by_hosts(tmp_path):
    """
    Otherwise no release, and no rollback, gets past its first step.
    """
    fleet = make_fleet(tmp_path, LONGEST)
    policy = fleet.release
    limits = host_commands.Limits(
        start_s=fleet.service.start_timeout, drain_s=policy.drain_timeout, golden_s=60.0, keep=3
    )

    host_commands.stop(Client(), "blue", limits)
    host_commands.start(Client(), "blue", "a" * 64, limits)
    acquire = LeaseAcquire(owner="ann", ttl_s=policy.lease_ttl)
    parse_request(acquire.VERB, encode_request(acquire, Call(None, "r1", "ann")).decode())
