"""
The lease of a host without Python, where no host program runs yet.

The file is the one that the host program keeps, in its format: once the host has Python, both sides
go on with the same lease.  It is decided here and written there by compare-and-swap, under the lock
of the host program.
"""

import json
import shlex
import time
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from deploy.errors import CommandFailed, DeployError, LeaseHeld, LeaseLost, PreconditionError
from deploy.foreign_text import says, visible
from deploy.host import layout
from deploy.host.lease import Lease, parse_lease
from deploy.host.protocol import (
    LeaseAcquire,
    LeaseGranted,
    LeaseRelease,
    LeaseReleased,
    LeaseRenew,
    Request,
)
from deploy.provision.lease_caller import LeaseCaller
from deploy.transport.base import Completed

ResultT = TypeVar("ResultT")

_ATTEMPTS = 5  # to write, where another writer comes between reading and writing
_CHANGED = 75  # exit status: the file is not the one that was read
_MARK = "slipway-bare "  # before each line of ours: a login shell may print others
_LOCK_S = 10

# /proc/uptime counts as CLOCK_BOOTTIME does, which the host program reads.
LOOK_COMMAND = (
    f"echo {_MARK}uptime $(cat /proc/uptime); "
    f"echo {_MARK}boot $(cat {layout.BOOT_ID}); "
    f"[ ! -e {layout.JOURNAL} ] || echo {_MARK}journal; "
    # A pipe would be waited for.
    f"[ ! -f {layout.LEASE} ] || printf '{_MARK}content %s\\n' \"$(cat {layout.LEASE})\""
)


@dataclass(frozen=True, slots=True)
class BareHost:
    """
    What `LOOK_COMMAND` says of a host.

    Attributes:
        steady_s: Seconds since its boot.
        line: Content of the lease file; "": there is none.
        has_journal: slipway was installed there before.
    """

    steady_s: float
    boot_id: str
    line: str
    has_journal: bool

    @property
    def last(self) -> Lease | None:
        """
        Return the lease in the file, in force or not.
        """
        return parse_lease(self.line)

    def left_s(self, lease: Lease | None) -> float:
        return lease.left_s(self.steady_s, self.boot_id) if lease else 0.0


def parse_look(stdout: str) -> BareHost | None:
    """
    Return what the output of `LOOK_COMMAND` says; None: it is none.
    """
    said = {}
    for line in stdout.split("\n"):
        if line.startswith(_MARK):
            key, _, value = line[len(_MARK) :].partition(" ")
            said[key] = value
    try:
        steady_s = float(said["uptime"].split()[0])
        return BareHost(steady_s, said["boot"], said.get("content", ""), "journal" in said)
    except (KeyError, IndexError, ValueError):
        return None


def swap_command(expected: str, line: str) -> str:
    """
    Return the command that replaces *expected*, the content of the lease file, by *line*.
    """
    lease = layout.LEASE
    return (
        f"umask 022; mkdir -p {layout.STATE} && exec 9>>{layout.LOCK} && "
        f"flock -w {_LOCK_S} 9 || exit 1; "
        # A data disk that was mounted meanwhile has another lock.
        f"[ {layout.LOCK} -ef /proc/self/fd/9 ] || exit {_CHANGED}; "
        f'[ "$([ ! -f {lease} ] || cat {lease})" = {shlex.quote(expected)} ] || exit {_CHANGED}; '
        f"umask 027; printf %s {shlex.quote(line)} >{lease}.new && sync {lease}.new && "
        f"mv -fT {lease}.new {lease}"
    )


class BareClient(LeaseCaller):
    """
    The verbs of the lease, on a host without Python.
    """

    def call(self, request: Request[ResultT], *, timeout_s: float = 15.0) -> ResultT:
        """
        Run *request*, one of the verbs of the lease, and return its result.

        Raises:
            LeaseHeld: Another owner holds the lease.
            LeaseLost: The caller's lease is no longer in force.
            PreconditionError: The number of the last lease is lost.
            CommandFailed: A command failed.
        """
        end_s = time.monotonic() + timeout_s
        for _ in range(_ATTEMPTS):
            there = self._look(end_s)
            wanted = self._decide(request, there)
            if wanted is None or self._swap(there, wanted, end_s):
                return cast(ResultT, _result(request, wanted))
        raise self._failed(f"{layout.LEASE} changed {_ATTEMPTS} times while it was read")

    def _decide(self, request: Request[Any], there: BareHost) -> Lease | None:
        """
        Return the lease to write; None: nothing is to be written.
        """
        last, left_s = there.last, there.left_s(there.last)
        match request:
            case LeaseAcquire():
                self._refuse_held(request, there)
                fence = (last.fence if last else 0) + 1
                epoch = last.epoch if last else 0
                return _lease(fence, request.owner, self.release, request.ttl_s, there, epoch)
            case LeaseRenew():
                if last is None or last.fence != self.fence or left_s <= 0:
                    raise self._lost(last)
                return _lease(
                    last.fence, last.owner, last.release, request.ttl_s, there, last.epoch
                )
            case LeaseRelease():
                if last is None or last.fence != self.fence or left_s <= 0:
                    return None
                return _lease(last.fence, None, last.release, 0.0, there, last.epoch)
        raise TypeError(f"{request.VERB} is no verb of the lease")

    def _refuse_held(self, request: LeaseAcquire, there: BareHost) -> None:
        last, left_s = there.last, there.left_s(there.last)
        if last is not None and left_s > 0 and last.owner != request.owner:
            raise LeaseHeld(
                f"{self.host}: another operator holds the lease",
                why=f"{visible(str(last.owner))} holds it for "
                f"{visible(str(last.release or 'no release'))}; it ends in {left_s:.0f} s unless "
                "it is renewed",
                fix="wait until it ends",
                host=self.host,
            )
        # A change that is not confirmed is no reason: without Python nothing takes it back, and
        # provisioning installs that.  Its requirements refuse the rest until the host is back.
        if last is None and there.has_journal:
            raise PreconditionError(
                f"{self.host}: the lease cannot be taken",
                why="python3 was removed from the host, and its lease file is lost or damaged",
                fix=f"apt-get install python3 on the host, then: inv provision --limit {self.host}",
                host=self.host,
            )

    def _lost(self, last: Lease | None) -> DeployError:
        return LeaseLost(
            f"{self.host}: lease {self.fence} is no longer in force",
            why=f"lease {last.fence} has replaced it, or it expired" if last else "it is gone",
            fix=f"inv provision --limit {self.host}",
            host=self.host,
        )

    def _look(self, end_s: float) -> BareHost:
        done = self._run(LOOK_COMMAND, end_s)
        there = parse_look(done.stdout)
        if there is None:
            raise self._failed(f"exit status {done.returncode}; {says(self.host, done.stderr)}")
        return there

    def _swap(self, there: BareHost, wanted: Lease, end_s: float) -> bool:
        done = self._run(swap_command(there.line, json.dumps(wanted._asdict())), end_s)
        if done.returncode not in (0, _CHANGED):
            raise self._failed(f"exit status {done.returncode}; {says(self.host, done.stderr)}")
        return done.returncode == 0

    def _run(self, script: str, end_s: float) -> Completed:
        return self._transport.run(
            [*(["sudo", "-n"] if self._sudo else []), "sh", "-c", script],
            timeout_s=max(0.1, end_s - time.monotonic()),
            check=False,
        )

    def _failed(self, why: str) -> CommandFailed:
        return CommandFailed(
            f"{self.host}: the lease file could not be written",
            why=why,
            fix=f"correct that on the host, then: inv provision --limit {self.host}",
            host=self.host,
        )


def _lease(
    fence: int,
    owner: str | None,
    release: str | None,
    ttl_s: float,
    there: BareHost,
    epoch: int,
) -> Lease:
    return Lease(
        fence=fence,
        owner=owner,
        release=release,
        expires_at=round(time.time() + ttl_s, 3) if ttl_s else 0.0,
        expires_steady_s=there.steady_s + ttl_s,
        boot_id=there.boot_id,
        epoch=epoch,
    )


def _result(request: Request[Any], wanted: Lease | None) -> LeaseGranted | LeaseReleased:
    if isinstance(request, LeaseRelease):
        return LeaseReleased(wanted is not None)
    assert wanted is not None
    return LeaseGranted(wanted.fence, wanted.expires_at)
