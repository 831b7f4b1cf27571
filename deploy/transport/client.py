"""
Calls the host program of one host: one SSH command a request, typed both ways.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from deploy.errors import (
    BundleTampered,
    BundleTruncated,
    BundleUnsigned,
    CommandFailed,
    DeployError,
    DiskTooSmall,
    LeaseHeld,
    LeaseLost,
    NothingToRollBackTo,
    PreconditionError,
    UsageError,
)
from deploy.host import layout
from deploy.host.codec import Malformed
from deploy.host.protocol import Call, ErrorKind, HostError, Request
from deploy.host.rpc import encode_request, parse_answer
from deploy.transport.base import Completed, Transport

ResultT = TypeVar("ResultT")

ERRORS: Mapping[ErrorKind, type[DeployError]] = MappingProxyType(
    {
        ErrorKind.USAGE: UsageError,
        ErrorKind.SCHEMA: PreconditionError,
        ErrorKind.PRECONDITION: PreconditionError,
        ErrorKind.DISK_TOO_SMALL: DiskTooSmall,
        ErrorKind.COMMAND_FAILED: CommandFailed,
        ErrorKind.LEASE_HELD: LeaseHeld,
        ErrorKind.LEASE_LOST: LeaseLost,
        ErrorKind.NOTHING_TO_ROLL_BACK_TO: NothingToRollBackTo,
        ErrorKind.BUNDLE_UNSIGNED: BundleUnsigned,
        ErrorKind.BUNDLE_TAMPERED: BundleTampered,
        ErrorKind.BUNDLE_TRUNCATED: BundleTruncated,
    }
)


class HostClient:
    """
    The host program of one host, with the lease that its changes carry.

    Attributes:
        fence: Number of the lease that this controller holds there; None: it holds none.
        release: Release that the journal records the changes under.
    """

    def __init__(self, transport: Transport, *, actor: str, sudo: bool) -> None:
        self._transport = transport
        self._actor = actor
        self._argv = [*(["sudo", "-n"] if sudo else []), *layout.HOST_COMMAND]
        self.fence: int | None = None
        self.release: str | None = None

    @property
    def host(self) -> str:
        return self._transport.host

    @property
    def transport(self) -> Transport:
        return self._transport

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
        )
        if completed.returncode != 0:
            raise self._crashed(request.VERB, completed)
        lines = completed.stdout.strip().splitlines()
        try:
            return parse_answer(request, lines[-1] if lines else "")
        except HostError as error:
            raise named_for(self.host, error) from None
        except Malformed as error:
            raise CommandFailed(
                f"{self.host}: {request.VERB}: the answer of the host program is not valid",
                why=str(error),
                fix=f"inv provision --limit {self.host} installs the host program of this release",
                host=self.host,
            ) from None

    def _crashed(self, verb: str, completed: Completed) -> DeployError:
        if "can't open file" in completed.stderr and layout.HOST_PROGRAM in completed.stderr:
            return PreconditionError(
                f"{self.host}: not provisioned",
                why=f"{layout.HOST_PROGRAM} is missing",
                fix=f"inv provision --limit {self.host}",
                host=self.host,
            )
        stderr = " / ".join(completed.stderr.strip().splitlines()[-4:])
        return CommandFailed(
            f"{self.host}: the host program failed at {verb}",
            why=f"exit status {completed.returncode}: {stderr or 'no output'}",
            fix=f"inv provision --limit {self.host} installs the host program of this release",
            host=self.host,
        )


def named_for(host: str, error: HostError) -> DeployError:
    """
    Return *error* as the controller raises it, with the name of *host* in front.
    """
    what = error.what if error.what.startswith(f"{host}:") else f"{host}: {error.what}"
    return ERRORS[error.kind](what, why=error.why, fix=error.fix, host=host)
