"""
Who may change this host: one owner, until a time, with a number that only grows.

Compare-and-swap under the lock of the host tool.  A lease ends when its time is over on the
clock that counts from boot (setting the wall clock moves nothing), and with the boot itself.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from deploy.host.files import write_atomic
from deploy.host.journal import Journal
from deploy.host.protocol import ErrorKind, HostError, LeaseStatus
from deploy.host.system import System


class Lease(NamedTuple):
    """
    What lease.json holds; `owner` is None once it was given back.

    Attributes:
        expires_at: For people and other machines, in seconds since 1970.
        expires_steady_s: For this host, in seconds of the clock that counts from boot.
    """

    fence: int
    owner: str | None
    release: str | None
    expires_at: float
    expires_steady_s: float
    boot_id: str

    def left_s(self, steady_s: float, boot_id: str) -> float:
        """
        Return the seconds until it ends; 0 when it has.
        """
        if self.owner is None or boot_id != self.boot_id:
            return 0.0
        return max(0.0, self.expires_steady_s - steady_s)


class Leases:
    """
    The lease file.  Whoever changes it holds the lock of the host tool.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._path = system.layout.lease

    def in_force(self) -> Lease | None:
        """
        Return the lease that is in force.
        """
        lease = self._read()
        if lease is None or self.left_s(lease) <= 0:
            return None
        return lease

    def status(self) -> LeaseStatus | None:
        """
        Return the lease in force as `status` reports it.
        """
        lease = self.in_force()
        if lease is None or lease.owner is None:
            return None
        return LeaseStatus(lease.owner, lease.release, lease.fence, self.left_s(lease))

    def left_s(self, lease: Lease) -> float:
        return lease.left_s(self._system.steady_s(), self._system.boot_id())

    def check(self, fence: int | None) -> Lease:
        """
        Return the lease of *fence*.

        Raises:
            HostError: It has ended, or another one is in force.
        """
        if fence is None:
            raise HostError(
                ErrorKind.PRECONDITION,
                "no lease was given",
                "this verb changes the host",
                "take the lease first: lease.acquire",
            )
        lease = self._read()
        if lease is not None and lease.fence == fence and self.left_s(lease) > 0:
            return lease
        raise HostError(
            ErrorKind.LEASE_LOST,
            f"the lease {fence} is not in force any more",
            self._why_not(lease, fence),
            "inv status; nothing more was changed here under this lease",
        )

    def take(self, owner: str, release: str | None, ttl_s: float) -> Lease:
        """
        Give *owner* the lease, with a higher number than any before.

        The holder may ask again for the same release: the answer may have been lost.

        Raises:
            HostError: Somebody else holds it.
        """
        held = self.in_force()
        if held is not None and (release is None or (held.owner, held.release) != (owner, release)):
            raise HostError(
                ErrorKind.LEASE_HELD,
                f"{held.owner} is at work here",
                f"their lease {held.fence} for {held.release or 'no release'} ends in "
                f"{self.left_s(held):.0f} s unless they renew it",
                "wait for them, or inv status",
            )
        last = self._read()
        # The journal remembers the number if the lease file was lost.
        fence = max(last.fence if last else 0, Journal(self._system).replay().fence) + 1
        return self._write(fence, owner, release, ttl_s)

    def renew(self, lease: Lease, ttl_s: float) -> Lease:
        return self._write(lease.fence, lease.owner, lease.release, ttl_s)

    def give_back(self, fence: int | None) -> bool:
        """
        End the lease of *fence*; False when it is not the one in force.
        """
        held = self.in_force()
        if held is None or held.fence != fence:
            return False
        self._write(held.fence, None, held.release, 0.0)
        return True

    def _why_not(self, lease: Lease | None, fence: int) -> str:
        if lease is None:
            return "this host has no lease"
        if lease.fence != fence:
            return f"lease {lease.fence} was given to {lease.owner or 'nobody'} since"
        if lease.owner is None:
            return "it was given back"
        if lease.boot_id != self._system.boot_id():
            return "the host was booted since"
        late_s = self._system.steady_s() - lease.expires_steady_s
        return f"it ended {late_s:.1f} s ago without being renewed"

    def _read(self) -> Lease | None:
        try:
            found = json.loads(self._path.read_bytes())
            return Lease(**found)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            return None  # not ours, or from before a change of format: the journal has the number

    def _write(self, fence: int, owner: str | None, release: str | None, ttl_s: float) -> Lease:
        lease = Lease(
            fence=fence,
            owner=owner,
            release=release,
            expires_at=round(self._system.wall_s() + ttl_s, 3),
            expires_steady_s=self._system.steady_s() + ttl_s,
            boot_id=self._system.boot_id(),
        )
        write_atomic(self._path, json.dumps(lease._asdict()).encode(), 0o640)
        return lease
