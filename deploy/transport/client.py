"""
Calls the host program of one host: one SSH command a request, typed both ways.
"""

from collections.abc import Sequence
from typing import TypeVar

from deploy.errors import CommandFailed, DeployError, PreconditionError
from deploy.foreign_text import says
from deploy.host import layout
from deploy.host.protocol import Call, Request
from deploy.host.rpc import encode_request
from deploy.transport.answers import read_answer
from deploy.transport.base import Completed, Transport

ResultT = TypeVar("ResultT")
_ANSWER = '{"ok": '


class HostClient:
    """
    The host program of one host, with the lease that its changes carry.

    Attributes:
        fence: Number of the lease that this controller holds there; None: it holds none.
        release: Release that the journal records the changes under.
        was_late: It did not answer in time when it was last looked at.
    """

    def __init__(self, transport: Transport, *, actor: str, sudo: bool) -> None:
        self._transport = transport
        self._actor = actor
        self._as_root = ["sudo", "-n"] if sudo else []
        self._argv = [*self._as_root, *layout.HOST_COMMAND]
        self.fence: int | None = None
        self.release: str | None = None
        self.was_late = False

    @property
    def host(self) -> str:
        return self._transport.host

    @property
    def transport(self) -> Transport:
        return self._transport

    def as_root(self, argv: Sequence[str]) -> list[str]:
        """
        Return the command that runs *argv* as root on the host.
        """
        return [*self._as_root, *argv]

    def call(self, request: Request[ResultT], *, timeout_s: float = 15.0) -> ResultT:
        """
        Run *request* on the host and return its result.

        Raises:
            DeployError: Of the kind that the host reports, named for the host.
            PreconditionError: The host has no host program, or that of another release.
            TransportError: It is unknown whether it ran.
        """
        call = Call(self.fence, self.release, self._actor)
        completed = self._transport.run(
            [*self._argv, request.VERB],
            timeout_s=timeout_s,
            stdin=encode_request(request, call),
            check=False,
            output_max=request.ANSWER_MAX,
        )
        if completed.returncode != 0:
            raise self._crashed(request.VERB, completed)
        # The login shell of the host may print before the answer and at its own end.
        lines = completed.stdout.strip().split("\n")
        answers = [line for line in lines if line.startswith(_ANSWER)]
        return read_answer(self.host, request, (answers or lines)[-1])

    def _crashed(self, verb: str, completed: Completed) -> DeployError:
        if "can't open file" in completed.stderr and layout.HOST_PROGRAM in completed.stderr:
            return PreconditionError(
                f"{self.host}: not provisioned",
                why=f"{layout.HOST_PROGRAM} is missing",
                fix=f"inv provision --limit {self.host}",
                host=self.host,
            )
        stderr = " / ".join(completed.stderr.strip().split("\n")[-4:])
        return CommandFailed(
            f"{self.host}: the host program failed at {verb}",
            why=f"exit status {completed.returncode}; {says(self.host, stderr)}",
            fix=f"inv provision --limit {self.host} installs the host program of this release",
            host=self.host,
        )
