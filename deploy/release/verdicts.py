"""
The verdict, reason and error of a release that was not promoted.  Pure.
"""

from collections.abc import Mapping

from deploy.errors import (
    CanaryRejected,
    DeployError,
    LeaseLost,
    ReleasePaused,
    ReleaseReverted,
    RollbackFailed,
    TransportError,
)
from deploy.release.gates import Judgement, Verdict

_OPERATOR = "operator"


def bug(error: Exception) -> Judgement:
    return Judgement(Verdict.REVERT, "bug", f"an internal error of slipway: {error!r}")


def interrupted() -> Judgement:
    return Judgement(Verdict.REVERT, _OPERATOR, "interrupted by the operator")


def interruption() -> DeployError:
    return DeployError("interrupted", why="the operator stopped it", fix="inv release finishes it")


def one_kind(errors: Mapping[str, DeployError]) -> bool:
    return len({type(error) for error in errors.values()}) == 1


def first(errors: Mapping[str, DeployError]) -> str:
    """
    Return the error of the first host by name, and the number of further hosts.
    """
    name = min(errors)
    more = f" (and {len(errors) - 1} more hosts)" if len(errors) > 1 else ""
    return f"{errors[name].what}: {errors[name].why}{more}"


def unstarted(release: str, errors: Mapping[str, DeployError]) -> DeployError:
    """
    Return the hosts' own kind of error: nothing was started, so there was nothing to take back.
    """
    error = errors[min(errors)]
    return type(error)(
        f"{release}: not released, and nothing was started: {error.what}",
        why=error.why,
        fix=error.fix,
        host=error.host,
    )


def unretired(release: str, errors: Mapping[str, DeployError]) -> DeployError:
    """
    Return the error of a promoted release whose old slots could not all be retired.
    """
    is_lost = isinstance(errors[min(errors)], TransportError | LeaseLost)
    return (TransportError if is_lost else DeployError)(
        f"{release}: promoted, but not finished on {', '.join(sorted(errors))}",
        why=first(errors),
        fix="it serves there; inv status when the host answers, then inv release finishes it",
    )


def ended(
    release: str,
    reason: str,
    verdict: Judgement | None,
    failed: Mapping[str, DeployError],
    *,
    cause: Mapping[str, DeployError],
    is_held: bool,
) -> DeployError:
    """
    Return the error of a release that was taken back or held.

    Args:
        cause: Errors of the hosts that turned it round.
        failed: Errors of the hosts that could not be taken back.
    """
    if failed:
        hosts = ", ".join(sorted(failed))
        return RollbackFailed(
            f"{release}: could not go back on {hosts}",
            why=f"{reason}; then {first(failed)}",
            fix="when the host answers again: inv status, then inv rollback; "
            "docs/runbooks/stuck.md has each step",
        )
    if is_held:
        return ReleasePaused(
            f"{release}: paused",
            why=reason,
            fix="the old release has all the traffic and the new one is warm: look at it, then "
            "inv resume to measure it again, inv promote to let it pass, or inv abort to drop it",
        )
    if verdict is not None and verdict.gate != _OPERATOR:
        return CanaryRejected(
            f"{release}: the canary was refused",
            why=reason,
            fix="the old release serves everywhere; find the cause in the canary's log: "
            "journalctl -u slipway-runtime@SLOT",
        )
    return ReleaseReverted(
        f"{release}: every host is back on the old release",
        why=reason,
        fix=next(
            (error.fix for error in cause.values() if isinstance(error, LeaseLost)),
            "correct the cause and release again",
        ),
    )
