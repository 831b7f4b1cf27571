"""
The lease of a host: one owner until a time, with a fencing number that only grows.

Compare-and-swap under the host's lock.  A lease ends when its time is over on the boot clock, which
setting the wall clock does not move, and with a reboot.
"""

from __future__ import annotations

import errno
import json
from typing import NamedTuple

from deploy.host.journal import Journal
from deploy.host.protocol import TTL_MAX_S, ErrorKind, HostError, LeaseStatus
from deploy.host.replay import Replayed
from deploy.host.reserve import with_room, write_spare
from deploy.host.system import System
from deploy.host.trusted_files import Untrusted, read_plain

NUMBER_MAX = 2**53  # of what the protocol carries


class Lease(NamedTuple):
    """
    Content of lease.json; `owner` is None after the lease was released.

    Attributes:
        expires_at: For people and other machines; seconds since 1970.
        expires_steady_s: For this host; seconds of the boot clock.
        epoch: Newest epoch that this host has granted a lease for.
    """

    fence: int
    owner: str | None
    release: str | None
    expires_at: float
    expires_steady_s: float
    boot_id: str
    epoch: int = 0

    def left_s(self, steady_s: float, boot_id: str) -> float:
        """
        Return the seconds until it ends; 0 after that.
        """
        if self.owner is None or boot_id != self.boot_id:
            return 0.0
        return max(0.0, self.expires_steady_s - steady_s)


def parse_lease(text: str | bytes) -> Lease | None:
    """
    Return the lease in *text*; None where it is damaged, or of another format: the journal has the
    number then.
    """
    try:
        lease = Lease(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    return lease if _is_lease(lease) else None


def _is_lease(lease: Lease) -> bool:
    numbers = (lease.fence, lease.epoch)
    times = (lease.expires_at, lease.expires_steady_s)
    return (
        all(type(number) is int and 0 <= number <= NUMBER_MAX for number in numbers)
        and all(text is None or isinstance(text, str) for text in (lease.owner, lease.release))
        and isinstance(lease.boot_id, str)
        and all(type(time) in (int, float) and abs(time) <= NUMBER_MAX for time in times)
    )


class Leases:
    """
    The lease file.  Callers that change it hold the host's lock.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._path = system.layout.lease

    def in_force(self) -> Lease | None:
        """
        Return the lease in force.
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
        return LeaseStatus(lease.owner, lease.release, lease.fence, self.left_s(lease), lease.epoch)

    def newest_epoch(self, replayed: Replayed | None = None) -> int:
        """
        Return the newest epoch that this host has seen; the journal has it where the file is lost.

        Args:
            replayed: State of the journal, where the caller has it.
        """
        last = self._read()
        replayed = replayed or Journal(self._system).replay()
        return max(last.epoch if last else 0, replayed.epoch)

    def last_fence(self) -> int:
        """
        Return the number of the last lease; 0 where its file is lost or damaged.
        """
        lease = self._read()
        return lease.fence if lease is not None else 0

    def ended_s(self) -> float:
        """
        Return the seconds of this boot since the last lease ended; 0 while one is in force.
        """
        lease, steady_s = self._read(), self._system.steady_s()
        if lease is None or lease.boot_id != self._system.boot_id():
            return steady_s
        return max(0.0, steady_s - lease.expires_steady_s)

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
                "the call carries no lease",
                "this verb changes the host",
                "take the lease first: lease.acquire",
            )
        lease = self._read()
        if lease is not None and lease.fence == fence and self.left_s(lease) > 0:
            return lease
        raise HostError(
            ErrorKind.LEASE_LOST,
            f"lease {fence} is no longer in force",
            self._why_not(lease, fence),
            "inv status; nothing more was changed on this host under this lease",
        )

    def take(
        self, owner: str, release: str | None, ttl_s: float, epoch: int = 0, *, steal: bool = False
    ) -> Lease:
        """
        Grant *owner* the lease, with a higher number than every earlier one.

        The holder may take it again for the same release, because the answer may have been lost.

        Args:
            epoch: Newer than every one that was granted here, or that of *owner* itself; 0: none.
            steal: Take it also from another owner.

        Raises:
            HostError: Another owner, or another release, holds it; or the epoch is not new.
        """
        held, last = self.in_force(), self._read()
        # The journal has the highest numbers also after the lease file was lost.
        replayed = Journal(self._system).replay()
        newest = max(last.epoch if last else 0, replayed.epoch)
        is_same = held is not None and release is not None
        is_same = is_same and (held.owner, held.release) == (owner, release)  # type: ignore[union-attr]
        if held is not None and not is_same and not (steal and epoch > newest):
            raise HostError(
                ErrorKind.LEASE_HELD,
                f"{held.owner} holds the lease",
                f"lease {held.fence} for {held.release or 'no release'} ends in "
                f"{self.left_s(held):.0f} s unless it is renewed",
                "wait until it ends; inv status shows it",
            )
        is_own = last is not None and last.owner == owner and last.epoch == epoch
        if epoch and (epoch < newest or (epoch == newest and not is_own)):
            raise HostError(
                ErrorKind.EPOCH_OLD,
                f"epoch {epoch} is not new",
                f"this host has seen epoch {newest}",
                "inv status, then the command again",
            )
        fence = max(last.fence if last else 0, replayed.fence) + 1
        return self._write(fence, owner, release, ttl_s, max(epoch, newest))

    def renew(self, lease: Lease, ttl_s: float) -> Lease:
        return self._write(lease.fence, lease.owner, lease.release, ttl_s, lease.epoch)

    def release(self, fence: int | None) -> bool:
        """
        End the lease of *fence*; False if another or no lease is in force.
        """
        held = self.in_force()
        if held is None or held.fence != fence:
            return False
        self._write(held.fence, None, held.release, 0.0, held.epoch)
        return True

    def _why_not(self, lease: Lease | None, fence: int) -> str:
        if lease is None:
            return "this host has no lease"
        if lease.fence != fence:
            return f"lease {lease.fence} has replaced it" + (
                f", of {lease.owner}" if lease.owner else ""
            )
        if lease.owner is None:
            return "it was released"
        if lease.boot_id != self._system.boot_id():
            return "the host was rebooted since"
        late_s = self._system.steady_s() - lease.expires_steady_s
        return f"it expired {late_s:.1f} s ago"

    def _read(self) -> Lease | None:
        """
        Return the lease in the file; None where it is lost or damaged.

        One of longer than any that is granted is damaged: it would keep the host from going back by
        itself for ever.
        """
        try:
            lease = parse_lease(read_plain(self._path))
        except (FileNotFoundError, Untrusted):
            return None  # a pipe or a directory is as a damaged one: the host must go back
        except OSError as error:
            if error.errno == errno.EIO:  # likewise: it cannot be read for good
                return None
            raise
        if lease is None or lease.boot_id != self._system.boot_id():
            return lease
        return lease if lease.expires_steady_s - self._system.steady_s() <= TTL_MAX_S else None

    def _write(
        self, fence: int, owner: str | None, release: str | None, ttl_s: float, epoch: int
    ) -> Lease:
        lease = Lease(
            fence=fence,
            owner=owner,
            release=release,
            expires_at=round(self._system.wall_s() + ttl_s, 3),
            expires_steady_s=self._system.steady_s() + ttl_s,
            boot_id=self._system.boot_id(),
            epoch=epoch,
        )
        data = json.dumps(lease._asdict()).encode()
        with_room(self._system, lambda: write_spare(self._path, data, 0o640))
        return lease
