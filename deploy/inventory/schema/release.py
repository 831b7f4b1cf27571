"""
The key `release`: the policy, and the whole section.  Pure.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from deploy.host.protocol import TIMEOUT_MAX_S, TTL_MAX_S
from deploy.inventory.schema.hooks import Hook
from deploy.inventory.schema.strict import Deadline, Strict
from deploy.inventory.schema.webhooks import Webhook
from deploy.units import Ratio, Seconds


def _wave(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]?%|100%", value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError(f"should be a number of hosts or a percentage from 1% to 100%, got {value!r}")


Wave = Annotated[int | str, BeforeValidator(_wave)]


class CanaryPolicy(Strict):
    """
    Share of traffic of a new release on a wave, and how long it is measured before the verdict.
    """

    share_pct: int = Field(default=10, ge=1, le=50)
    duration: Deadline = 60.0  # shortest time of measuring
    give_up_after: Deadline = 600.0  # with too few requests by then, the release pauses
    min_requests: int = Field(default=100, ge=1)  # answered by the canary, in one wave
    interval: Deadline = 1.0  # between two measurements

    @model_validator(mode="after")
    def _gives_up_after_measuring(self) -> Self:
        if self.give_up_after < self.duration:
            raise ValueError("give_up_after should not be shorter than duration")
        return self


class ErrorRateGate(Strict):
    """
    Limit of the canary's error rate, and what happens above it.
    """

    max: Ratio = 0.05
    min_requests: int = Field(default=20, ge=1)
    action: Literal["pause", "revert"] = "pause"


class RestartsGate(Strict):
    """
    Limit of the new runtime's restarts within a time, and what happens above it.
    """

    max: int = Field(default=3, ge=0)
    within: Deadline = 300.0
    action: Literal["pause", "revert"] = "revert"


class Gates(Strict):
    """
    Conditions that stop a release.
    """

    http_request_error_rate: ErrorRateGate = ErrorRateGate()
    runtime_restarts: RestartsGate = RestartsGate()


class ReleasePolicy(Strict):
    """
    How a release proceeds through the fleet.
    """

    mode: Literal["side_by_side"] = "side_by_side"
    canary: CanaryPolicy = CanaryPolicy()
    waves: tuple[Wave, ...] = Field(default=(1, "50%", "100%"), min_length=1)  # cumulative
    gates: Gates = Gates()
    max_unavailable: int = Field(default=0, ge=0, le=100_000)  # hosts that may be lost
    failure_budget: int = Field(default=0, ge=0, le=100_000)  # hosts that may fail
    keep_old: Literal["stopped", "warm"] = "stopped"  # the old slot, after a release
    # Longest wait for requests in flight, on a host.
    drain_timeout: Annotated[Seconds, Field(ge=0.001, le=TIMEOUT_MAX_S)] = 60.0
    lease_ttl: Annotated[Seconds, Field(ge=1, le=TTL_MAX_S)] = 30.0
    keep: int = Field(default=3, ge=2, le=1000)  # good releases kept on a host


class ReleaseSection(ReleasePolicy):
    """
    The key `release` of a fleet file: the policy, and what accompanies a release.

    Hooks are no part of the policy: that is in the plan, its digest and the state on hosts, and no
    host may choose a program that runs on the operator's machine.
    """

    hooks: tuple[Hook, ...] = ()
    notify: tuple[Webhook, ...] = ()

    # Not rules of the policy: a release whose plan has such waves or such an interval, from an
    # earlier version, has to be steered.
    @model_validator(mode="after")
    def _has_hosts_in_each_wave(self) -> Self:
        most: dict[type, int] = {}
        for wave in self.waves:
            count = int(wave[:-1]) if isinstance(wave, str) else wave
            if count <= most.get(type(wave), 0):
                raise ValueError(
                    f"waves: {wave} adds no host: each is how many hosts have the release after it,"
                    " those of earlier waves included"
                )
            most[type(wave)] = count
        return self

    @model_validator(mode="after")
    def _measures_while_it_waits(self) -> Self:
        if self.canary.interval > self.canary.duration:
            raise ValueError(
                "canary.interval should not be longer than canary.duration: a bad canary would"
                " serve until its first measurement"
            )
        return self

    @property
    def policy(self) -> ReleasePolicy:
        return ReleasePolicy.model_construct(
            **{name: getattr(self, name) for name in ReleasePolicy.model_fields}
        )
