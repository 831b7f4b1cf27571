"""
Calls the host tool (`deploy.host` on the host): one SSH command a verb, JSON both ways.
"""

import json
from typing import Any

from deploy import errors
from deploy.errors import CommandFailed, DeployError, PreconditionError
from deploy.host import layout
from deploy.transport.base import Transport


class HostTool:
    """
    The host tool of one host, with the lease that its effects carry.

    Attributes:
        fence: Number of the lease that this controller holds there; None: it holds none.
        release: Release that the effects are written down under.
    """

    def __init__(self, transport: Transport, *, actor: str, sudo: bool) -> None:
        self._transport = transport
        self._actor = actor
        self._argv = [*(["sudo", "-n"] if sudo else []), "python3", layout.HOST_PROGRAM]
        self.fence: int | None = None
        self.release: str | None = None

    @property
    def host(self) -> str:
        return self._transport.host

    @property
    def transport(self) -> Transport:
        return self._transport

    def call(
        self, verb: str, args: dict[str, Any] | None = None, *, timeout_s: float = 15.0
    ) -> dict[str, Any]:
        """
        Run *verb* on the host and return its result.

        Raises:
            DeployError: Of the kind that the host reports, named for the host.
            PreconditionError: The host has no host tool: it was not provisioned.
            TransportError: We do not know whether it ran.
        """
        envelope = {
            "fence": self.fence,
            "release": self.release,
            "actor": self._actor,
            "args": args or {},
        }
        done = self._transport.run(
            [*self._argv, verb],
            timeout_s=timeout_s,
            stdin=json.dumps(envelope).encode(),
            check=False,
        )
        if done.returncode != 0:
            if "can't open file" in done.stderr and layout.HOST_PROGRAM in done.stderr:
                raise PreconditionError(
                    f"{self.host}: not provisioned",
                    why=f"{layout.HOST_PROGRAM} is not there",
                    fix=f"inv provision --limit {self.host}",
                    host=self.host,
                )
            said = " / ".join(done.stderr.strip().splitlines()[-4:])
            raise CommandFailed(
                f"{self.host}: the host tool broke at {verb}",
                why=f"exit status {done.returncode}: {said or 'it said nothing'}",
                fix=f"inv provision --limit {self.host} puts the tool of this version there",
                host=self.host,
            )
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        if answer["ok"]:
            result: dict[str, Any] = answer["result"]
            return result
        raise _typed(answer["error"], self.host)


def _typed(error: dict[str, str], host: str) -> DeployError:
    kind = getattr(errors, error["kind"], CommandFailed)
    what = error["what"]
    if not what.startswith(f"{host}:"):
        what = f"{host}: {what}"
    made: DeployError = kind(what, why=error["why"], fix=error["fix"], host=host)
    return made
