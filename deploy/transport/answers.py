"""
The one door for what hosts say: the text of an answer becomes a typed result or an error.

A host only selects.  Of an error it selects the kind, among those that its verb can have; class,
exit code and remedy are ours.  Its words are quoted as its own, as a reason.  A result that
contradicts its request is as invalid as one of the wrong type.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from deploy.errors import (
    BundleTampered,
    BundleTruncated,
    BundleUnsigned,
    CommandFailed,
    DeployError,
    DiskTooSmall,
    EpochOld,
    LeaseHeld,
    LeaseLost,
    NothingToRollBackTo,
    PreconditionError,
    TorchMismatch,
)
from deploy.foreign_text import says, visible
from deploy.host.codec import Malformed
from deploy.host.layout import SLOTS
from deploy.host.protocol import (
    REQUESTS,
    DoorSet,
    ErrorKind,
    FactQuery,
    Facts,
    Golden,
    GoldenResult,
    GoodRollback,
    HostError,
    JournalPage,
    JournalRead,
    LeaseAcquire,
    Measure,
    PublicAsk,
    PythonPlace,
    Request,
    Revive,
    SlotStart,
    SlotStop,
    StageCommit,
    StageMissing,
    Status,
    TrafficSet,
    TrafficWeights,
    VenvBuild,
)
from deploy.host.rpc import parse_answer

ResultT = TypeVar("ResultT")

ERRORS: Mapping[ErrorKind, type[DeployError]] = MappingProxyType(
    {
        ErrorKind.USAGE: CommandFailed,  # not the operator's usage: our document is refused
        ErrorKind.SCHEMA: PreconditionError,
        ErrorKind.PRECONDITION: PreconditionError,
        ErrorKind.DISK_TOO_SMALL: DiskTooSmall,
        ErrorKind.COMMAND_FAILED: CommandFailed,
        ErrorKind.LEASE_HELD: LeaseHeld,
        ErrorKind.LEASE_LOST: LeaseLost,
        ErrorKind.EPOCH_OLD: EpochOld,
        ErrorKind.NOTHING_TO_ROLL_BACK_TO: NothingToRollBackTo,
        ErrorKind.BUNDLE_UNSIGNED: BundleUnsigned,
        ErrorKind.BUNDLE_TAMPERED: BundleTampered,
        ErrorKind.BUNDLE_TRUNCATED: BundleTruncated,
        ErrorKind.TORCH_MISMATCH: TorchMismatch,
    }
)

_WHAT: Mapping[ErrorKind, str] = MappingProxyType(
    {
        ErrorKind.SCHEMA: "the host program is of another release of slipway",
        ErrorKind.DISK_TOO_SMALL: "too little free disk space",
        ErrorKind.LEASE_HELD: "another operator holds the lease",
        ErrorKind.LEASE_LOST: "this lease is no longer in force",
        ErrorKind.EPOCH_OLD: "another operator has begun since",
        ErrorKind.NOTHING_TO_ROLL_BACK_TO: "not recorded as good",
        ErrorKind.BUNDLE_UNSIGNED: "the bundle has no valid signature",
        ErrorKind.BUNDLE_TAMPERED: "a file differs from the signed one",
        ErrorKind.BUNDLE_TRUNCATED: "a file is incomplete",
        ErrorKind.TORCH_MISMATCH: "the torch of the environment is not as the row says",
    }
)

# Remedies by kind, and by verb where it needs another one.  {host} and {slot} are filled in.
_REMEDIES: Mapping[ErrorKind, str] = MappingProxyType(
    {
        ErrorKind.USAGE: "inv provision --limit {host} installs the host program of this release",
        ErrorKind.SCHEMA: "inv provision installs the host program of this release",
        ErrorKind.PRECONDITION: "inv status, then: inv provision --limit {host}",
        ErrorKind.DISK_TOO_SMALL: "free space on {host} (df -h /opt/slipway /var/lib/slipway "
        "there; where no inode is left, df -i); docs/runbooks/on-call.md says what may be deleted",
        ErrorKind.COMMAND_FAILED: "look at the host: inv status, systemctl status haproxy "
        "'slipway-runtime@*' on {host}; then: inv provision --limit {host}",
        ErrorKind.LEASE_HELD: "wait until it ends or expires: inv status shows the owner; for a "
        "lease that nobody renews, that is its time to live at most",
        ErrorKind.LEASE_LOST: "inv status; nothing more was changed on {host} under this lease",
        ErrorKind.EPOCH_OLD: "inv status shows who; then the command again",
        ErrorKind.NOTHING_TO_ROLL_BACK_TO: "inv status --json lists the good releases of each "
        "host; name one of them: inv rollback --to",
        ErrorKind.BUNDLE_UNSIGNED: "sign it with a key of the fleet's allowed_signers: inv bundle; "
        "inv provision installs changed signers",
        ErrorKind.BUNDLE_TAMPERED: "nothing was unpacked; build the bundle again: inv bundle",
        ErrorKind.BUNDLE_TRUNCATED: "nothing was unpacked; send it again: inv release",
        ErrorKind.TORCH_MISMATCH: "compare inv matrix with nvidia-smi on {host}, then: "
        "inv provision --limit {host}",
    }
)
_REFUSED_BUNDLE = (
    "a bundle of another fleet or format: inv bundle builds it again; an older one that is meant: "
    "inv release --allow-older, or inv rollback to what was good; else inv status, then: "
    "inv provision --limit {host}"
)
_NO_MEMORY = (
    "where memory ended, free -m and journalctl -k on {host}, and the command again once memory is "
    "free; else: "
)
_MASKED = (
    "where the unit is masked, on {host}: systemctl unmask UNIT, and again with --runtime; else: "
    "inv provision --limit {host}"
)
_REMEDIES_OF_VERBS: Mapping[tuple[str, ErrorKind], str] = MappingProxyType(
    {
        (
            SlotStart.VERB,
            ErrorKind.COMMAND_FAILED,
        ): "journalctl -u slipway-runtime@{slot} on {host}; the other slot was not touched",
        (SlotStop.VERB, ErrorKind.COMMAND_FAILED): "wait for its requests, or on {host}: systemctl "
        "kill slipway-runtime@{slot}",
        (LeaseAcquire.VERB, ErrorKind.PRECONDITION): "wait until {host} has gone back: inv status",
        (
            SlotStop.VERB,
            ErrorKind.PRECONDITION,
        ): "take its requests away first; inv status shows the weights",
        (
            VenvBuild.VERB,
            ErrorKind.COMMAND_FAILED,
        ): _NO_MEMORY + "the lock, the row's torch build and the Python "
        "of {host} must fit: inv matrix, and nvidia-smi there; then: inv provision --limit {host}",
        (PythonPlace.VERB, ErrorKind.BUNDLE_TAMPERED): "nothing was unpacked; name another archive "
        "in mirrors.python.archives, then: inv provision --limit {host}",
        (
            PythonPlace.VERB,
            ErrorKind.BUNDLE_TRUNCATED,
        ): "inv provision --limit {host} sends it again",
        (StageCommit.VERB, ErrorKind.COMMAND_FAILED): _NO_MEMORY + "the bundle must fit {host}: "
        "inv matrix, and nvidia-smi there; inv bundle builds it again",
        (Revive.VERB, ErrorKind.PRECONDITION): _MASKED,
        (Revive.VERB, ErrorKind.COMMAND_FAILED): "journalctl -u haproxy -u 'slipway-runtime@*' on "
        "{host}, then: inv provision --limit {host}",
        (StageMissing.VERB, ErrorKind.PRECONDITION): _REFUSED_BUNDLE,
        (StageCommit.VERB, ErrorKind.PRECONDITION): _REFUSED_BUNDLE,
        (SlotStart.VERB, ErrorKind.PRECONDITION): "where slipway-runtime@{slot} is masked, on "
        "{host}: systemctl unmask it, and again with --runtime; " + _REFUSED_BUNDLE,
        (TrafficSet.VERB, ErrorKind.COMMAND_FAILED): "inv status; journalctl -u haproxy -u "
        "'slipway-runtime@*' on {host}",
        (TrafficSet.VERB, ErrorKind.PRECONDITION): "inv status; journalctl -u 'slipway-runtime@*' "
        "on {host}",
    }
)

_PLACING = frozenset({StageMissing.VERB, StageCommit.VERB, VenvBuild.VERB, PythonPlace.VERB})
# Kinds that only these verbs can have; a host that claims one elsewhere would choose our exit code.
_ONLY_OF: Mapping[ErrorKind, frozenset[str]] = MappingProxyType(
    {
        ErrorKind.LEASE_HELD: frozenset({LeaseAcquire.VERB}),
        ErrorKind.EPOCH_OLD: frozenset({LeaseAcquire.VERB}),
        ErrorKind.LEASE_LOST: frozenset(
            verb for verb, request in REQUESTS.items() if request.NEEDS_LEASE
        ),
        ErrorKind.NOTHING_TO_ROLL_BACK_TO: frozenset({GoodRollback.VERB}),
        ErrorKind.BUNDLE_UNSIGNED: frozenset({StageMissing.VERB, StageCommit.VERB}),
        ErrorKind.BUNDLE_TAMPERED: _PLACING,
        ErrorKind.BUNDLE_TRUNCATED: _PLACING,
        ErrorKind.TORCH_MISMATCH: frozenset({VenvBuild.VERB}),
    }
)


def read_answer(host: str, request: Request[ResultT], text: str) -> ResultT:
    """
    Return the result of *request* in *text*, the last line that *host* wrote.

    Raises:
        DeployError: Of the kind that the host reports, named for the host.
        CommandFailed: The text is no valid answer to *request*.
    """
    try:
        result = parse_answer(request, text)
        _refuse_contradiction(request, result)
    except HostError as error:
        raise error_of(host, request, error) from None
    except Exception as error:  # of any class: what an answer leads to is that host's failure
        raise CommandFailed(
            f"{host}: {request.VERB}: the answer of the host program is not valid",
            why=visible(str(error) or type(error).__name__),
            fix=f"inv provision --limit {host} installs the host program of this release; if the "
            "answer stays so, do not trust that host",
            host=host,
        ) from (None if isinstance(error, Malformed) else error)
    return result


def error_of(host: str, request: Request[Any], error: HostError) -> DeployError:
    """
    Return what *host* reports about *request* as the controller raises it.
    """
    is_possible = request.VERB in _ONLY_OF.get(error.kind, frozenset({request.VERB}))
    kind = error.kind if is_possible else ErrorKind.COMMAND_FAILED
    remedy = _REMEDIES_OF_VERBS.get((request.VERB, kind), _REMEDIES[kind])
    return ERRORS[kind](
        f"{host}: {request.VERB}: {_WHAT.get(kind, 'failed')}",
        why=says(host, f"{error.what}: {error.why}"),
        fix=remedy.format(host=host, slot=getattr(request, "slot", "SLOT")),
        host=host,
    )


def _refuse_contradiction(request: Request[Any], result: object) -> None:
    """
    Raise Malformed where *result*, of the right type, is not about what *request* asked.
    """
    check = _CHECKS.get(type(request))
    problem = check(request, result) if check is not None else None
    if problem is not None:
        raise Malformed(f"answer: {problem}")


def _same(request: Any, result: Any, *names: str) -> str | None:
    for name in names:
        wanted, got = getattr(request, name), getattr(result, name)
        if wanted != got:
            return f"{name} is {got!r}, asked was {wanted!r}"
    return None


def _slots(what: str, names: Mapping[str, object]) -> str | None:
    return None if set(names) == set(SLOTS) else f"{what} of {sorted(names)}, not of all slots"


def _weights(request: TrafficSet, result: TrafficWeights) -> str | None:
    problem = _slots("weights", result.weights)
    if problem is None and any(result.weights[s] != n for s, n in request.weights.items()):
        problem = f"the weights are {result.weights}, asked was {dict(request.weights)}"
    return problem


def _golden(_request: Golden, result: GoldenResult) -> str | None:
    is_sum = result.passed + len(result.failures) <= result.total
    is_whole = bool(result.failures) == (result.passed < result.total)
    return None if is_sum and is_whole else "its numbers of prompts contradict each other"


def _page(request: JournalRead, page: JournalPage) -> str | None:
    if len(page.lines) > request.limit:
        return f"{len(page.lines)} lines, asked were at most {request.limit}"
    if page.last_seq < request.after_seq or (page.lines and page.last_seq == request.after_seq):
        return f"lines up to {page.last_seq}, asked were those after {request.after_seq}"
    if not page.lines and not page.is_end:
        return "no lines, and yet more to come"
    return None


def _facts(query: FactQuery, facts: Facts) -> str | None:
    for what, asked, got in (
        ("paths", {*query.paths, *query.secrets}, facts.paths),
        ("packages", query.packages, facts.packages),
        ("users", query.users, facts.users),
        ("units", query.units, facts.units),
        ("listings", query.listings, facts.listings),
        ("room", query.room, facts.room),
    ):
        if set(asked) != set(got):
            return f"{what} other than those asked for"
    if query.gpu != (facts.gpu is not None):
        return "GPUs that were not asked for, or none that were"
    if bool(query.install) != (facts.simulation is not None):
        return "a simulation that was not asked for, or none that was"
    return None


_CHECKS: Mapping[type[Request[Any]], Callable[[Any, Any], str | None]] = MappingProxyType(
    {
        Status: lambda _request, status: _slots("states", status.slots),
        Measure: lambda _request, measurement: _slots("counters", measurement.slots),
        StageCommit: lambda request, staged: _same(request, staged, "bundle"),
        SlotStart: lambda request, started: _same(request, started, "slot", "bundle"),
        SlotStop: lambda request, stopped: _same(request, stopped, "slot"),
        TrafficSet: _weights,
        Golden: _golden,
        DoorSet: lambda request, state: _same(request, state, "is_open"),
        PublicAsk: lambda request, answer: _same(request, answer, "version"),
        FactQuery: _facts,
        JournalRead: _page,
    }
)
