"""
How long the actions of a plan may take on one host: the time limits of their calls, summed.
"""

from dataclasses import dataclass

CALL_S = 15.0  # of a call without a limit of its own
MARGIN_S = 15.0  # for the SSH command, beyond the time limit on the host
SHIFT_S = 30.0  # until a slot that gains traffic is UP
CONFIRM_S = 60.0  # of a request through the public port, with the new connection
RETIRE_S = 60.0  # old releases are deleted
STAGE_S = 1800.0  # an estimate: it depends on the size


@dataclass(frozen=True, slots=True)
class Deadlines:
    """
    Seconds for each action.

    Args:
        start_s, golden_s, drain_s: Limits on the host, as of `host_commands.Limits`.
    """

    start_s: float
    golden_s: float
    drain_s: float

    @property
    def revive(self) -> float:
        return CALL_S + self.start_s + 2 * MARGIN_S

    @property
    def start(self) -> float:
        return self.start_s + MARGIN_S

    @property
    def golden(self) -> float:
        return self.golden_s + MARGIN_S

    @property
    def arm(self) -> float:
        return 2 * CALL_S

    @property
    def check(self) -> float:
        return CONFIRM_S

    @property
    def confirm(self) -> float:
        return CONFIRM_S + CALL_S

    @property
    def stop(self) -> float:
        """
        Requests drain before the stop, and while systemd stops the runtime.
        """
        return 2 * self.drain_s + 3 * MARGIN_S

    @property
    def clear(self) -> float:
        return SHIFT_S + self.stop

    @property
    def retire(self) -> float:
        return self.stop + RETIRE_S

    @property
    def hold(self) -> float:
        """
        What served before starts again, where it was stopped.
        """
        return CALL_S + self.start + SHIFT_S + 2 * CALL_S

    @property
    def take_back(self) -> float:
        return self.hold + self.stop
