"""
Every error this toolkit raises on purpose, and the exit code of each.

DeployError                1   a task failed; the message says what
├── InventoryError         2   the file is wrong or missing; no host was touched
├── UnknownHost            12  a name that the fleet does not have; no host was touched
├── UsageError             19  a flag, a value or an answer is not one that the task takes
├── PreconditionError      3   a host is not as the plan assumed; it was not touched
│   ├── PortInUse          17  another program listens on the public port
│   └── DiskTooSmall       18  what is to be placed does not fit
├── CommandFailed          4   the command ran and said no
├── TransportError         5   we do not know whether the command ran
│   └── HostKeyMismatch    13  the host is not the one that was recorded; nothing was sent
├── LeaseHeld              6   somebody else is releasing
├── LeaseLost              7   we were fenced off in the middle
├── CanaryRejected         8   the new release was measured and refused; the old one serves
├── ReleasePaused          10  stopped without a verdict; the old release has all the traffic
├── ReleaseReverted        24  a step failed and every host is back on the old release
├── RollbackFailed         9   hosts are mixed; a person is needed
├── NothingToRollBackTo    20  no earlier release was recorded as good
├── BundleUnsigned         11  no valid signature of an allowed signer; nothing was unpacked
├── BundleTampered         14  a file is not the one that was signed; nothing was unpacked
├── BundleTruncated        15  a file is shorter than the one that was signed
├── ModelPathError         16  the model path is absent, unreadable or not a model
├── ProvisionFailed        21  one or more hosts are not as pinned; the report names each
├── VerifyFailed           22  assertions about hosts did not hold
└── LabError               23  the lab can't run here, or a lab host did not come up
"""

from typing import Any


class DeployError(Exception):
    """
    Base of every error raised on purpose.

    Args:
        what: What failed, named: a host, a file and key, a release.
        why: What was observed, in the words of the system that said it.
        fix: What the operator does next.
        host: The host that it happened on, where there is one.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str, fix: str, host: str | None = None) -> None:
        super().__init__(what)
        self.what, self.why, self.fix, self.host = what, why, fix, host

    def __str__(self) -> str:
        return f"{self.what}\n  why: {self.why}\n  fix: {self.fix}"

    def as_json(self) -> dict[str, Any]:
        """
        Return the `error` document of every task's `--json`.
        """
        found = {
            "kind": type(self).__name__,
            "what": self.what,
            "why": self.why,
            "fix": self.fix,
            "exit_code": self.exit_code,
        }
        return found | ({"host": self.host} if self.host else {})


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


class CanaryRejected(DeployError):
    exit_code = 8


class RollbackFailed(DeployError):
    exit_code = 9


class ReleasePaused(DeployError):
    exit_code = 10


class ReleaseReverted(DeployError):
    exit_code = 24


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


class LabError(DeployError):
    exit_code = 23
