"""
What the callers of the verbs of the lease share, on hosts with a Python and without.
"""

from deploy.transport.base import Transport


class LeaseCaller:
    """
    A host on which the verbs of the lease are called.

    Attributes:
        fence, release: As in `HostClient`.
    """

    def __init__(self, transport: Transport, *, sudo: bool) -> None:
        self._transport, self._sudo = transport, sudo
        self.fence: int | None = None
        self.release: str | None = None

    @property
    def host(self) -> str:
        return self._transport.host

    @property
    def transport(self) -> Transport:
        return self._transport
