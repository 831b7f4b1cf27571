"""
The faults of the drill.  Pure.
"""

from enum import StrEnum


class Fault(StrEnum):
    """
    One fault, injected when a journal line is on the disk of its host.
    """

    SIGKILL = "SIGKILL"  # the operator's process
    SIGTERM = "SIGTERM"  # the operator's process, as by a cancelled CI job
    SECOND = "second operator"  # `inv rollback` from another checkout
    CUT = "cut"  # SSH to the host, without an answer; its users still reach it
    REBOOT = "reboot"
    CRASH = "crash"  # power loss; the host boots again at once
    FREEZE = "freeze"  # all processes of the host, for longer than a lease
    DISK = "full disk"
    HAPROXY = "HAProxy killed"
    CLOCK = "clock jump"  # the wall clock of the host, by an hour

    @property
    def is_of_operator(self) -> bool:
        """
        True if the fault concerns the operator alone, so all hosts are touched alike.
        """
        return self in (Fault.SIGKILL, Fault.SIGTERM, Fault.SECOND)

    @property
    def ends_operator(self) -> bool:
        return self in (Fault.SIGKILL, Fault.SIGTERM)

    @property
    def stops_service(self) -> bool:
        """
        True if the host itself, or its HAProxy, dies or stops: its own users lose requests then.
        """
        return self in (Fault.REBOOT, Fault.CRASH, Fault.FREEZE, Fault.HAPROXY)

    @property
    def reboots(self) -> bool:
        return self in (Fault.REBOOT, Fault.CRASH)
