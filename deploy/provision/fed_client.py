"""
Calls the verbs of the lease on a host, whether or not slipway was installed there.
"""

from typing import TypeVar

from deploy.errors import CommandFailed
from deploy.host.protocol import Call, Request
from deploy.provision.lease_caller import LeaseCaller
from deploy.provision.probe import fed_command, fed_input, parse_probe
from deploy.transport.base import Transport

ResultT = TypeVar("ResultT")


class FedClient(LeaseCaller):
    """
    The host program of one host, sent with each call.  The host has a Python.
    """

    def __init__(
        self, transport: Transport, *, actor: str, sudo: bool, packed_program: bytes
    ) -> None:
        super().__init__(transport, sudo=sudo)
        self._actor, self._packed_program = actor, packed_program

    def call(self, request: Request[ResultT], *, timeout_s: float = 15.0) -> ResultT:
        """
        Run *request* on the host and return its result.

        Raises:
            DeployError: As for `HostClient.call`.
        """
        call = Call(self.fence, self.release, self._actor)
        completed = self._transport.run(
            [*(["sudo", "-n"] if self._sudo else []), "sh", "-c", fed_command(request.VERB)],
            timeout_s=timeout_s,
            stdin=fed_input(self._packed_program, request, call),
            check=False,
            output_max=request.ANSWER_MAX,
        )
        result = parse_probe(self.host, request, completed)
        if result is None:
            raise CommandFailed(
                f"{self.host}: {request.VERB}: the host has no Python any more",
                why="it had python3 when its facts were read",
                fix=f"find out what removes packages on the host, then: "
                f"inv provision --limit {self.host}",
                host=self.host,
            )
        return result
