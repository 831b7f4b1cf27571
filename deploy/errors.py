"""
All errors that the toolkit raises, with their exit codes and what is true after each of them.

DeployError                1   a task failed; the message says what
├── InventoryError         2   the fleet file is missing or invalid; no host was touched
├── UnknownHost            12  a name that the fleet does not have; no host was touched
├── UsageError             19  a flag, a value or an answer is not one that the task takes
├── PreconditionError      3   a host is not as the plan assumed; it was not touched
│   ├── PortInUse          17  another program listens on the public port
│   └── DiskTooSmall       18  too little free disk space on a host
├── CommandFailed          4   a command ran and failed
├── TransportError         5   it is unknown whether the command ran
│   └── HostKeyMismatch    13  the host's key is not the recorded one; nothing was sent
├── LeaseHeld              6   another operator holds the lease
├── LeaseLost              7   the lease was lost or taken over during the release
│   └── EpochOld           25  another operator has begun since; nothing was changed
├── CanaryRejected         8   a gate rejected the new release; the old one serves
├── ReleasePaused          10  the release stopped without a verdict; the old one has all traffic
├── ReleaseReverted        24  a step failed; every host serves the old release again
├── RollbackFailed         9   hosts may serve different releases; an operator has to act
├── NothingToRollBackTo    20  no earlier release is recorded as good
├── FleetDiffers           26  hosts are not as the desired state says
├── AuditBroken            27  the journal of a host was changed, or lacks lines that were there
├── BundleUnsigned         11  no valid signature of an allowed signer; nothing was unpacked
├── BundleTampered         14  a file differs from the signed one; nothing was unpacked
├── BundleTruncated        15  a file is shorter than the signed one
├── ModelPathError         16  the model path is missing, unreadable or not a model
├── ProvisionFailed        21  some hosts are not in the pinned state; the report names them
├── VerifyFailed           22  assertions about hosts failed
├── TorchMismatch          31  a new environment has another torch, or it computes wrong results
├── NoRowFits              30  no row of the version matrix fits the question
└── LabError               23  the lab cannot run on this machine, or a lab host did not come up
"""

import re
from typing import Any

_USER_OF_URL = re.compile(r"://[^/\s@]*(?:@[^/\s@]*)*@")


def hide_passwords(text: str) -> str:
    """
    Return *text* with `[hidden]` in place of the user and password of each URL.

    The URL of a package index or a proxy may have them, and programs print it.
    """
    return _USER_OF_URL.sub("://[hidden]@", text)


class DeployError(Exception):
    """
    Base of all errors that the toolkit raises.  Any other exception is a bug.

    Args:
        what: What failed, with its name: a host, a file and key, a release.
        why: What was observed, with the message of the system that reported it.
        fix: Next step for the operator: a command, or a key to change.
        host: Name of the host on which it happened; None if it concerns no single host.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str, fix: str, host: str | None = None) -> None:
        what, why, fix = (hide_passwords(text) for text in (what, why, fix))
        super().__init__(what)
        self.what, self.why, self.fix, self.host = what, why, fix, host

    def __str__(self) -> str:
        return f"{self.what}\n  why: {self.why}\n  fix: {self.fix}"

    def as_json(self) -> dict[str, Any]:
        """
        Return the `error` document of every task's `--json`.
        """
        document = {
            "kind": type(self).__name__,
            "what": self.what,
            "why": self.why,
            "fix": self.fix,
            "exit_code": self.exit_code,
        }
        return document | ({"host": self.host} if self.host else {})


class InventoryError(DeployError):
    exit_code = 2


class UnknownHost(DeployError):
    exit_code = 12


class UsageError(DeployError):
    exit_code = 19


class PreconditionError(DeployError):
    exit_code = 3


class PortInUse(PreconditionError):
    exit_code = 17


class DiskTooSmall(PreconditionError):
    exit_code = 18


class CommandFailed(DeployError):
    exit_code = 4


class TransportError(DeployError):
    exit_code = 5


class HostKeyMismatch(TransportError):
    exit_code = 13


class LeaseHeld(DeployError):
    exit_code = 6


class LeaseLost(DeployError):
    exit_code = 7


class EpochOld(LeaseLost):
    exit_code = 25


class CanaryRejected(DeployError):
    exit_code = 8


class RollbackFailed(DeployError):
    exit_code = 9


class ReleasePaused(DeployError):
    exit_code = 10


class ReleaseReverted(DeployError):
    exit_code = 24


class FleetDiffers(DeployError):
    exit_code = 26


class AuditBroken(DeployError):
    exit_code = 27


class BundleUnsigned(DeployError):
    exit_code = 11


class BundleTampered(DeployError):
    exit_code = 14


class BundleTruncated(DeployError):
    exit_code = 15


class ModelPathError(DeployError):
    exit_code = 16


class NothingToRollBackTo(DeployError):
    exit_code = 20


class ProvisionFailed(DeployError):
    exit_code = 21


class VerifyFailed(DeployError):
    exit_code = 22


class TorchMismatch(DeployError):
    exit_code = 31


class NoRowFits(DeployError):
    exit_code = 30


class LabError(DeployError):
    exit_code = 23
