"""
What the controller and the host program say to each other: every verb, its fields, its errors.

A verb is a request type; its type argument is the type of the result.  The controller sends one
request and reads one answer for each run of the host program; `rpc` has their documents.

Standard library only; annotations are evaluated on Python 3.9, hence `Optional`.
"""

from __future__ import annotations

import typing
from dataclasses import field
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, NamedTuple, Optional, TypeVar

from deploy.host.codec import OneOf, Pattern, Range
from deploy.host.layout import SLOTS
from deploy.host.names import KeyName, ModelName

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    from deploy.host.message import dataclass  # the same, loaded faster

SCHEMA = 6  # raised with each change that the other side would misread; 1 had no number

Digest = Annotated[str, Pattern(r"[0-9a-f]{64}", "64 hexadecimal digits")]
WheelName = Annotated[
    str, Pattern(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,199}\.whl", "the file name of a wheel")
]
PackageName = Annotated[str, Pattern(r"[a-z0-9][a-z0-9.+-]{0,127}", "the name of a Debian package")]
InstalledName = Annotated[
    str,
    Pattern(
        r"[a-z0-9][a-z0-9.+-]{0,127}(?::[a-z0-9-]{1,32})?",
        "the name of a Debian package, with its architecture where that is another",
    ),
]
PackageVersion = Annotated[
    str, Pattern(r"[0-9A-Za-z][0-9A-Za-z.+:~-]{0,149}", "the version of a Debian package")
]
KernelRelease = Annotated[
    str, Pattern(r"[0-9A-Za-z][0-9A-Za-z.+_~-]{0,99}", "the release of a kernel")
]
PciId = Annotated[str, Pattern(r"[0-9a-f]{4}", "four hexadecimal digits")]
SlotName = Annotated[str, OneOf(SLOTS)]
Percent = Annotated[int, Range(0, 100)]
PythonMinor = Annotated[str, Pattern(r"3\.[0-9]{1,2}", "a Python version such as 3.11")]
PythonRelease = Annotated[str, Pattern(r"3\.[0-9]{1,2}\.[0-9]{1,3}", "a release of Python")]
TIMEOUT_MAX_S, TTL_MAX_S = 7200, 3600
TimeoutS = Annotated[float, Range(0.001, TIMEOUT_MAX_S)]
LeaseTtlS = Annotated[float, Range(0.001, TTL_MAX_S)]
Keep = Annotated[int, Range(1, 1000)]
Epoch = Annotated[int, Range(0, 2**53)]  # 0: none
JournalNumber = Annotated[int, Range(0, 2**53)]  # of a line, from 1

ResultT = TypeVar("ResultT")


class ErrorKind(str, Enum):
    """
    Kinds of error that the host program reports; the controller has an error class for each.
    """

    USAGE = "UsageError"
    SCHEMA = "SchemaMismatch"  # the two sides are of different releases of slipway
    PRECONDITION = "PreconditionError"
    DISK_TOO_SMALL = "DiskTooSmall"
    COMMAND_FAILED = "CommandFailed"
    LEASE_HELD = "LeaseHeld"
    LEASE_LOST = "LeaseLost"
    EPOCH_OLD = "EpochOld"  # another operator has had this epoch, or a newer one
    NOTHING_TO_ROLL_BACK_TO = "NothingToRollBackTo"
    BUNDLE_UNSIGNED = "BundleUnsigned"
    BUNDLE_TAMPERED = "BundleTampered"
    BUNDLE_TRUNCATED = "BundleTruncated"
    TORCH_MISMATCH = "TorchMismatch"


class HostError(Exception):
    """
    An error that the host program reports to its caller.

    Args:
        what: What failed, named.
        why: What was observed, as the system reported it.
        fix: What the operator does next.
    """

    def __init__(self, kind: ErrorKind, what: str, why: str, fix: str) -> None:
        super().__init__(what)
        self.kind, self.what, self.why, self.fix = kind, what, why, fix

    def as_json(self) -> dict[str, str]:
        return {"kind": self.kind.value, "what": self.what, "why": self.why, "fix": self.fix}


class Call(NamedTuple):
    """
    The circumstances of one request.

    Attributes:
        fence: Number of the lease that the caller holds; None: it holds none.
        release: Release that the call belongs to.
        actor: Name of the caller, for the journal.
    """

    fence: Optional[int] = None
    release: Optional[str] = None
    actor: str = "unknown"


class Request(Generic[ResultT]):
    """
    Base of all requests.

    Attributes:
        VERB: Name of the verb, the one argument of the host program.
        NEEDS_LEASE: The verb changes what serves, so it is refused without the lease.
        ANSWER_MAX: Most bytes of its answer; the controller takes no more.
    """

    VERB: ClassVar[str]
    NEEDS_LEASE: ClassVar[bool] = True
    ANSWER_MAX: ClassVar[int] = 2**20


def result_type(request: type[Request[ResultT]]) -> type[ResultT]:
    """
    Return the type of the result of *request*.
    """
    for base in request.__orig_bases__:  # type: ignore[attr-defined]
        if typing.get_origin(base) is Request:
            result: type[ResultT] = typing.get_args(base)[0]
            return result
    raise TypeError(f"{request.__name__} names no result")


# -- lease


@dataclass(frozen=True)
class LeaseGranted:
    """
    Attributes:
        fence: Fencing number; higher than that of every earlier lease of the host.
        expires_at: Seconds since 1970, by the host's clock.
    """

    fence: int
    expires_at: float


@dataclass(frozen=True)
class LeaseAcquire(Request[LeaseGranted]):
    """
    Take the lease of the host for *owner*.

    Attributes:
        epoch: Epoch of the fleet's desired state that the lease is for: newer than every one that
            this host has seen, or its owner's own.  0: the lease changes no desired state.
        steal: Take it also from another owner, whose epoch is older.
        needs_settled: Refuse while a change of a release is not confirmed.  The lease would keep
            the host from going back by itself.
    """

    VERB = "lease.acquire"
    NEEDS_LEASE = False

    owner: str
    ttl_s: LeaseTtlS
    epoch: Epoch = 0
    steal: bool = False
    needs_settled: bool = False


@dataclass(frozen=True)
class LeaseRenew(Request[LeaseGranted]):
    """
    Extend the caller's lease to *ttl_s* from now.
    """

    VERB = "lease.renew"

    ttl_s: LeaseTtlS


@dataclass(frozen=True)
class LeaseReleased:
    released: bool  # False: another lease is in force


@dataclass(frozen=True)
class LeaseRelease(Request[LeaseReleased]):
    """
    End the caller's lease.
    """

    VERB = "lease.release"
    NEEDS_LEASE = False


# -- desired state


STATE_MAX = 512 << 10  # bytes of the text of a desired state


@dataclass(frozen=True)
class StateStamp:
    """
    Which desired state a host holds.

    Attributes:
        number: Counts the writes of one epoch, from 1.
        sha256: Of the text.
    """

    epoch: Epoch
    number: int
    sha256: Digest


@dataclass(frozen=True)
class StateWrite(Request[StateStamp]):
    """
    Store the desired state of the fleet, under the epoch of the caller's lease.

    A number that is not higher than the stored one of that epoch is refused, unless the text is
    the same.
    """

    VERB = "state.write"

    number: Annotated[int, Range(1, 2**53)]
    text: str


@dataclass(frozen=True)
class StateText:
    """
    Attributes:
        stamp: None: the host holds no desired state.
    """

    stamp: Optional[StateStamp]
    text: str


@dataclass(frozen=True)
class StateRead(Request[StateText]):
    """
    Return the desired state of the fleet as this host holds it; changes nothing.
    """

    VERB = "state.read"
    NEEDS_LEASE = False
    ANSWER_MAX = 4 * STATE_MAX  # JSON may need several bytes for one of the text


# -- API keys


KEYS_MAX = 1000  # of one list, revoked ones included
KEYS_BYTES_MAX = 1 << 20  # of the file of a list
KEY_SECRETS_MAX = 4  # tokens of one key that are accepted at once
KEY_MODELS_MAX = 16
KEY_CONCURRENCY_MAX = 10**6

EpochS = Annotated[int, Range(0, 2**40)]  # seconds since 1970
PerMinute = Annotated[int, Range(1, 10**9)]
KeysVersion = Annotated[int, Range(1, 2**53)]


@dataclass(frozen=True)
class KeySecret:
    """
    One token of a key.

    Attributes:
        sha256: Of the token.  The token has 256 random bits, so no slower hash is needed.
        expires_at: None: it does not expire.
    """

    sha256: Digest
    created_at: EpochS
    expires_at: Optional[EpochS] = None


@dataclass(frozen=True)
class ApiKey:
    """
    A key of the service, by its name.

    Attributes:
        changed: Version of the list that last changed this key.
        changed_at: When, by the clock of the operator's machine.
        secrets: Newest first; empty: the key is revoked, and stays so that no host that missed it
            brings the key back.
        models: Names of the models that it may use; empty: all.
        weight: Share of the engine, compared with the other keys of its priority.
        priority: Requests of keys with a lower number are computed first.
        concurrency: Most of its answers that a slot computes at once; None: no limit.
    """

    key_name: KeyName
    changed: KeysVersion
    changed_at: EpochS
    secrets: tuple[KeySecret, ...]
    models: tuple[ModelName, ...] = ()
    requests_per_minute: Optional[PerMinute] = None
    tokens_per_minute: Optional[PerMinute] = None
    weight: Annotated[int, Range(1, 100)] = 1
    priority: Annotated[int, Range(0, 9)] = 5
    concurrency: Optional[Annotated[int, Range(1, KEY_CONCURRENCY_MAX)]] = None


@dataclass(frozen=True)
class KeysStamp:
    """
    Which list of keys a host holds.

    Attributes:
        version: Counts the changes of the list.
        sha256: Of its file.
    """

    version: KeysVersion
    sha256: Digest


@dataclass(frozen=True)
class KeysHeld:
    """
    Attributes:
        stamp: None: the host has no list, or a damaged one.
        keys: Ordered by name.
        damage: Why the file on the host is no list of keys; None: it is one, or there is none.
    """

    stamp: Optional[KeysStamp]
    keys: tuple[ApiKey, ...]
    damage: Optional[str] = None


@dataclass(frozen=True)
class KeysRead(Request[KeysHeld]):
    """
    Return the API keys as this host holds them; changes nothing.
    """

    VERB = "keys.read"
    NEEDS_LEASE = False
    ANSWER_MAX = 4 * KEYS_BYTES_MAX


@dataclass(frozen=True)
class KeysWritten:
    """
    Attributes:
        is_written: False: the host holds another list than the caller expected.
        held: What it holds now.
    """

    is_written: bool
    held: KeysHeld


@dataclass(frozen=True)
class KeysWrite(Request[KeysWritten]):
    """
    Replace the list of API keys, if the host still holds the one that the caller has read.

    Needs no lease: keys change also while a release runs.  The comparison keeps two operators
    from undoing each other's change.

    Attributes:
        expected: Stamp of the list that the caller has read; None: there was none.
        version: Counts the changes, for the operator.
    """

    VERB = "keys.write"
    NEEDS_LEASE = False
    ANSWER_MAX = 4 * KEYS_BYTES_MAX

    expected: Optional[KeysStamp]
    version: KeysVersion
    keys: tuple[ApiKey, ...]


# -- the host's own way back


@dataclass(frozen=True)
class Armed:
    left_s: float  # until the host goes back by itself, unless the lease is renewed


@dataclass(frozen=True)
class DeadmanArm(Request[Armed]):
    """
    Let the host go back by itself when no lease is in force any more, or after a reboot.

    It goes back to what *from_slot* serves: gives it all the traffic and stops *to_slot*.  A host
    that is armed already keeps the *from_slot* of then.  Its own release may turn
    the way round while the slot of the change has no traffic.

    Attributes:
        from_slot: Slot that serves now; None: nothing serves, so going back stops *to_slot*.
    """

    VERB = "deadman.arm"

    to_slot: SlotName
    from_slot: Optional[SlotName]


@dataclass(frozen=True)
class Confirmed:
    """
    Attributes:
        checked: A request through the public port was answered by the new release; False: none
            was sent, as the host was confirmed already, or the request did not ask for it.
    """

    checked: bool


@dataclass(frozen=True)
class DeadmanConfirm(Request[Confirmed]):
    """
    Keep the new release: after a request through the public port, the host does not go back any
    more.

    Attributes:
        version: Version that must answer.
        ask: Send the request; False: it was answered a moment ago.
        keep: Keep the release; False: only send the request.
    """

    VERB = "deadman.confirm"

    bundle: Digest
    version: str
    ask: bool = True
    keep: bool = True


@dataclass(frozen=True)
class Disarmed:
    disarmed: bool  # False: it was not armed


@dataclass(frozen=True)
class DeadmanDisarm(Request[Disarmed]):
    """
    The host is back where it was, so it has no way to go any more; refused while it is not.
    """

    VERB = "deadman.disarm"


@dataclass(frozen=True)
class DeadmanTested:
    took_s: float  # until the timer's check answered


@dataclass(frozen=True)
class DeadmanTest(Request[DeadmanTested]):
    """
    Let the host's timer run the check on a change that is none; changes nothing that serves.
    """

    VERB = "deadman.test"
    NEEDS_LEASE = False


# -- journal


@dataclass(frozen=True)
class EventAppended:
    seq: int  # number of the journal line


@dataclass(frozen=True)
class JournalAppend(Request[EventAppended]):
    """
    Write an event of a release into the journal.
    """

    VERB = "journal.append"

    step: str
    data: dict[str, Any] = field(default_factory=dict)


JOURNAL_PAGE_MAX = 256 << 10  # bytes of the lines of a page, unless the first alone is longer


@dataclass(frozen=True)
class JournalPage:
    """
    Attributes:
        lines: As they stand in the journal, oldest first: their hashes are those of the chain.
        last_seq: Number up to which these are all; the next page begins after it.
        is_end: No line follows.
    """

    lines: tuple[str, ...]
    last_seq: JournalNumber
    is_end: bool


@dataclass(frozen=True)
class JournalRead(Request[JournalPage]):
    """
    Return the lines of the journal after number *after_seq*, page by page; changes nothing.

    Attributes:
        limit: Most lines of the page.
    """

    VERB = "journal.read"
    NEEDS_LEASE = False
    ANSWER_MAX = 40 * JOURNAL_PAGE_MAX  # a line has many values, and quotes need another byte

    after_seq: JournalNumber = 0
    limit: Annotated[int, Range(1, 1000)] = 1000


@dataclass(frozen=True)
class GoodRelease:
    """
    A release recorded as good: a rollback may return to it.
    """

    release: str
    bundle: Digest
    version: str


@dataclass(frozen=True)
class GoodReleases:
    good: tuple[GoodRelease, ...]  # oldest first


@dataclass(frozen=True)
class GoodRecord(Request[GoodReleases]):
    """
    Record the release of the call as good.
    """

    VERB = "good.record"

    bundle: Digest
    version: str
    slot: SlotName


@dataclass(frozen=True)
class GoodRollback(Request[GoodReleases]):
    """
    Make *to_release* the last good release: those after it leave the record.

    Refused until its bundle has all the traffic of the host, so that a way back that fails changes
    no record.

    Attributes:
        bundle, version: Of that release.  A host that has no such release on record gets it as its
            only one; without them that is refused.
    """

    VERB = "good.rollback"

    to_release: str
    bundle: Optional[Digest] = None
    version: Optional[str] = None


# -- bundles


@dataclass(frozen=True)
class Wheel:
    file: WheelName
    sha256: Digest
    size: int  # bytes


@dataclass(frozen=True)
class StageNeeds:
    """
    What the host lacks of a bundle.

    Attributes:
        bundle: Manifest, signature and archive are missing.
        venv: The lock's environment is missing.
        blobs: SHA-256 of the model files to send.
        wheels: File names of the wheels to send.
        need_bytes: Space that staging takes.
        free_bytes: Free space of the file system that has the least left.
    """

    bundle: bool
    venv: bool
    blobs: tuple[Digest, ...]
    wheels: tuple[str, ...]
    need_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class StageMissing(Request[StageNeeds]):
    """
    Return what the host lacks of a bundle, and make the directory for uploads.

    Attributes:
        manifest: Text of the bundle's manifest, in canonical form.
        allow_older: It may be older than the newest release that was recorded as good.
    """

    VERB = "stage.missing"
    NEEDS_LEASE = False

    manifest: str
    allow_older: bool = False


@dataclass(frozen=True)
class Staged:
    """
    Attributes:
        signer: Allowed signer whose key signed the bundle.
        placed_bundle: The bundle's own files were placed; False: they were there.
        placed_blobs, placed_wheels: How many files were placed.
    """

    bundle: Digest
    version: str
    signer: str
    placed_bundle: bool
    placed_blobs: int
    placed_wheels: int
    venv_built: bool
    took_s: float


@dataclass(frozen=True)
class StageCommit(Request[Staged]):
    """
    Verify the uploads of a bundle, then place them.

    Attributes:
        allow_older: As in stage.missing.
    """

    VERB = "stage.commit"

    bundle: Digest
    allow_older: bool = False


@dataclass(frozen=True)
class VenvBuilt:
    """
    Attributes:
        built: False: it was there.
        full_gpus: Numbers of GPUs on which torch was not compared: they had no free memory.
    """

    built: bool
    took_s: float
    full_gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class VenvBuild(Request[VenvBuilt]):
    """
    Build the environment of a lock from wheels in the wheelhouse.

    For one that is there, the comparison of its torch on the GPUs is made up for where it is due.

    Attributes:
        lock: Text of the lock.
        digest: SHA-256 of that text.
        python: Python of the environment, such as "3.11".
        torch: Version and build of torch that it must have, such as "2.13.0+cu130"; null: not
            compared.
    """

    VERB = "venv.build"
    NEEDS_LEASE = False  # it adds immutable content

    lock: str
    digest: Digest
    python: str
    wheels: tuple[Wheel, ...]
    torch: Optional[str] = None


@dataclass(frozen=True)
class PythonPlaced:
    """
    Attributes:
        placed: False: it was in place already.
    """

    placed: bool


@dataclass(frozen=True)
class PythonPlace(Request[PythonPlaced]):
    """
    Unpack the archive of a standalone Python, which is among the uploads.

    Attributes:
        python: Its minor version, such as "3.11".
        release: Such as "3.11.16"; the interpreter has to say the same.
        sha256: Of the archive.
        size: Of the archive in bytes.
    """

    VERB = "python.place"
    NEEDS_LEASE = False  # it adds immutable content

    python: PythonMinor
    release: PythonRelease
    sha256: Digest
    size: int


@dataclass(frozen=True)
class DroppedRelease:
    """
    A release that a host has deleted: no rollback can return to it there.

    Attributes:
        version: None: its manifest could not be read.
        release: Newest release that it was recorded as good under; None: it never was.
    """

    bundle: Digest
    version: Optional[str]
    release: Optional[str]


@dataclass(frozen=True)
class Retired:
    """
    Attributes:
        kept: Bundles that stay.
        dropped: Releases that were deleted.
        removed: Names of what was deleted, by kind: releases, venvs, pythons, models, blobs,
            wheels, incoming.
    """

    kept: tuple[str, ...]
    dropped: tuple[DroppedRelease, ...]
    removed: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Retire(Request[Retired]):
    """
    Delete what no rollback can ask for.

    The last *keep* good releases stay, those of the slots, and every bundle whose digest the
    desired state names.
    """

    VERB = "retire"

    keep: Keep


# -- slots


@dataclass(frozen=True)
class SlotStarted:
    """
    Attributes:
        unit: systemd's ActiveState.
        started: False: it ran already.
    """

    slot: SlotName
    bundle: Digest
    unit: str
    restarts: int
    started: bool
    took_s: float


@dataclass(frozen=True)
class SlotStart(Request[SlotStarted]):
    """
    Start *bundle* in *slot*; the answer comes when it is READY, or was stopped after a failure.

    Attributes:
        allow_older: As in stage.missing; one that was recorded as good needs no such permission.
    """

    VERB = "slot.start"

    slot: SlotName
    bundle: Digest
    timeout_s: TimeoutS = 300.0
    allow_older: bool = False


@dataclass(frozen=True)
class SlotStopped:
    slot: SlotName
    unit: str  # systemd's ActiveState
    stopped: bool  # False: it was stopped already
    took_s: float


@dataclass(frozen=True)
class SlotStop(Request[SlotStopped]):
    """
    Stop and disable *slot*; refused while it takes requests.  After *timeout_s* it is killed.
    """

    VERB = "slot.stop"

    slot: SlotName
    timeout_s: TimeoutS = 60.0


@dataclass(frozen=True)
class Revived:
    done: tuple[str, ...]  # what was brought back, one text each


@dataclass(frozen=True)
class Revive(Request[Revived]):
    """
    Bring back what should run on the host and does not: it changes no weight and no release.

    The directories below /run/slipway; HAProxy, which is restarted where it runs without its
    socket; and the units of slots, those included whose directory of the socket was removed.

    Attributes:
        slots: Slots to start, and to wait for.  Those with traffic are started in any case, and
            are not waited for.
        timeout_s: For the start of each slot.
    """

    VERB = "revive"

    slots: tuple[SlotName, ...] = ()
    timeout_s: TimeoutS = 300.0


@dataclass(frozen=True)
class GoldenFailure:
    line: int  # of golden.jsonl, from 1
    expected: str
    got: str


@dataclass(frozen=True)
class GoldenResult:
    """
    Attributes:
        failures: The first ten.
    """

    total: int
    passed: int
    failures: tuple[GoldenFailure, ...]


@dataclass(frozen=True)
class Golden(Request[GoldenResult]):
    """
    Ask *slot* the golden prompts of its bundle.
    """

    VERB = "golden"

    slot: SlotName
    timeout_s: TimeoutS = 120.0


@dataclass(frozen=True)
class TrafficWeights:
    weights: dict[SlotName, Percent]  # of all slots, as read back
    haproxy: dict[SlotName, str]  # HAProxy's status of each server


@dataclass(frozen=True)
class TrafficSet(Request[TrafficWeights]):
    """
    Set the weights of the named slots; a slot that gains traffic is UP before another loses it.

    Attributes:
        force: All weights may be 0, which leaves the host without service.
    """

    VERB = "traffic.set"

    weights: dict[SlotName, Percent]
    force: bool = False


@dataclass(frozen=True)
class Drained:
    """
    Attributes:
        left: Requests in flight when the wait ended.
        maint: The slot is in HAProxy's maint state; False: it still drains.
    """

    waited_s: float
    left: int
    maint: bool


@dataclass(frozen=True)
class TrafficDrain(Request[Drained]):
    """
    Wait until no request of *slot* is in flight.
    """

    VERB = "traffic.drain"

    slot: SlotName
    timeout_s: TimeoutS = 60.0


# -- reboots


@dataclass(frozen=True)
class DoorState:
    is_open: bool  # as read back


@dataclass(frozen=True)
class DoorSet(Request[DoorState]):
    """
    Open or close the door of the host, for balancers in front of it.

    While it is closed, /readyz at the public port answers 503.  Requests that come all the same
    are served, and their connections end after the answer.  It stays as it is over restarts of
    HAProxy and boots.
    """

    VERB = "door.set"

    is_open: bool


@dataclass(frozen=True)
class PublicAnswer:
    version: str  # that answered


@dataclass(frozen=True)
class PublicAsk(Request[PublicAnswer]):
    """
    Send one request through the public port, as users do; *version* must answer it.

    Attributes:
        slot: Whose golden prompts are asked.
    """

    VERB = "public.ask"
    NEEDS_LEASE = False

    slot: SlotName
    version: str


@dataclass(frozen=True)
class RebootReason:
    """
    Why a host has to be rebooted.

    Attributes:
        cause: Such as packages, kernel or driver.  The list is open: others are shown, and
            rebooted for, as these are.
        observed: What the host has, in words.
    """

    cause: Annotated[str, Pattern(r"[a-z][a-z0-9-]{0,31}", "a lower-case word")]
    observed: str


@dataclass(frozen=True)
class RebootBegun:
    is_begun: bool  # False: it was rebooted since


@dataclass(frozen=True)
class Reboot(Request[RebootBegun]):
    """
    Reboot the host, whose door is closed and where no change waits to be confirmed.

    Attributes:
        boot_id: Of the boot to end.  In another one nothing is done, so that a request that is
            repeated reboots once.
    """

    VERB = "reboot"

    boot_id: str


# -- the certificate of the public port


CERTIFICATE_MAX = 48 << 10  # bytes of certificates and key; HAProxy's socket takes 64 KiB


@dataclass(frozen=True)
class CertificateInstalled:
    """
    Attributes:
        sha256: Of the certificate, in DER.
        served: New connections to the public port show it.  False: HAProxy does not run, or not
            with a certificate; it reads the file at its next start or reload.
    """

    sha256: Digest
    served: bool


@dataclass(frozen=True)
class CertificateSet(Request[CertificateInstalled]):
    """
    Replace the certificate of the public port; no connection ends and HAProxy is not reloaded.

    Refused, with the old one served on, unless key and certificate belong together, are valid
    now, and HAProxy takes them.

    Attributes:
        pem: The certificate, those that sign it, then the private key, without empty lines.
        replaces: SHA-256 of the certificate that the host was seen with: where another operator
            has replaced that one meanwhile, it is refused; None: any.
    """

    VERB = "certificate.set"
    NEEDS_LEASE = False  # it changes no weight and no release

    # No pattern: the error of one would quote the key.
    pem: str = field(repr=False)
    replaces: Optional[Digest] = None


# -- challenges of an ACME server


ChallengeToken = Annotated[str, Pattern(r"[A-Za-z0-9_-]{16,128}", "a token of an ACME challenge")]
KeyAuthorization = Annotated[
    str, Pattern(r"[A-Za-z0-9_-]{16,128}\.[A-Za-z0-9_-]{43}", "a token, a dot and a thumbprint")
]


@dataclass(frozen=True)
class ChallengesShown:
    """
    Attributes:
        answered: Challenges that HAProxy answers now.
    """

    answered: int


@dataclass(frozen=True)
class ChallengeSet(Request[ChallengesShown]):
    """
    Let HAProxy answer HTTP-01 challenges of an ACME server, or no longer.

    HAProxy keeps the answers in memory: a restart forgets them.  Nothing in them is secret.

    Attributes:
        show: What is answered from now on, by the token of the challenge.
        hide: Tokens that are answered no longer; unknown ones are no error.
    """

    VERB = "challenge.set"
    NEEDS_LEASE = False  # it changes no weight and no release

    show: dict[ChallengeToken, KeyAuthorization] = field(default_factory=dict)
    hide: tuple[ChallengeToken, ...] = ()


# -- reading a host


@dataclass(frozen=True)
class LeaseStatus:
    """
    A lease in force.

    Attributes:
        left_s: Seconds until it expires, by the host's boot clock.
    """

    owner: str
    release: Optional[str]
    fence: int
    left_s: float
    epoch: Epoch = 0


@dataclass(frozen=True)
class Pending:
    """
    A change that the host takes back by itself unless it is confirmed.

    Attributes:
        left_s: Seconds until then; 0: it is going back.
        is_stuck: It should be back since minutes, or has no program to go back with.
    """

    release: str
    epoch: Epoch
    to_slot: SlotName
    from_slot: Optional[SlotName]
    left_s: float
    is_stuck: bool = False


@dataclass(frozen=True)
class WentBack:
    """
    The host went back by itself, and nothing was confirmed there since.

    Attributes:
        at: UTC, as in the journal.
    """

    release: str
    epoch: Epoch
    at: str
    why: str


@dataclass(frozen=True)
class SlotStatus:
    """
    One slot.

    Attributes:
        unit: systemd's ActiveState; "unknown" when systemd did not answer.
        weight: Share of the host's traffic in percent; None when HAProxy did not answer.
        haproxy: HAProxy's status of the server: UP, LATE, DOWN, MAINT, DRAIN; None as above.
        sessions: Requests in flight or queued; None as above.
        ready: It answered its readiness check.
        is_masked: systemd was told never to start its unit.
    """

    bundle: Optional[str]
    version: Optional[str]
    unit: str
    weight: Optional[int]
    haproxy: Optional[str]
    sessions: Optional[int]
    ready: bool
    is_masked: bool = False


@dataclass(frozen=True)
class Unfinished:
    """
    The latest verb or release that began and has not ended.

    Attributes:
        rollback_to: Release that it returns to, if it is a rollback.
        epoch: Epoch of the desired state that it began under; 0: none.
        bundle: Bundle that it goes to; None: not known.
    """

    release: Optional[str]
    step: str
    rollback_to: Optional[str] = None
    epoch: Epoch = 0
    bundle: Optional[Digest] = None


@dataclass(frozen=True)
class HostStatus:
    """
    Attributes:
        good: Releases recorded as good, not rolled back, that the host can start now; oldest first.
        paused: Release that waits for a decision of the operator.
        journal_damaged: Journal lines that cannot be read.
        free_opt_bytes, free_state_bytes: Free space under /opt/slipway and /var/lib/slipway.
        is_reserve_whole: No space that is kept for a full disk was used.
        epoch: Newest epoch of the desired state that the host has seen.
        state: Which desired state it holds.
        staged: Bundles that it can start.
        pending: What it takes back by itself unless it is confirmed.
        went_back: What it took back by itself.
        is_deadman_tested: Its own way back was tried out there, with the present host program and
            units, as provisioning does.
        certificate: That the public port shows, DER in base64; "": it shows none; None: the port
            is plain HTTP.
        is_certificate_kept: A restart of HAProxy would show the same one: it is in its file.
        keys: Which list of API keys it holds; None: none, or a damaged one.
        keys_damage: Why its file of API keys is no list.
        is_open: Its door is; None: HAProxy does not answer, or has no door.
        reboot_reasons: Why it has to be rebooted; empty: it has not.
        package_units: Units that change packages or build a driver's modules now; they go on
            without the provisioning run that started them; None: systemd does not answer.
        is_pending_damaged: Nothing says what it is to take back by itself, if anything.
        is_pending_aside: A damaged file of what it is to take back was put aside, and is there.
    """

    boot_id: str
    lease: Optional[LeaseStatus]
    slots: dict[SlotName, SlotStatus]
    good: tuple[GoodRelease, ...]
    unfinished: Optional[Unfinished]
    paused: Optional[str]
    journal_damaged: int
    free_opt_bytes: int
    free_state_bytes: int
    is_reserve_whole: bool
    epoch: Epoch
    state: Optional[StateStamp]
    staged: tuple[Digest, ...]
    pending: Optional[Pending]
    went_back: Optional[WentBack]
    is_deadman_tested: bool
    certificate: Optional[str] = None
    is_certificate_kept: bool = True
    keys: Optional[KeysStamp] = None
    keys_damage: Optional[str] = None
    is_open: Optional[bool] = None
    reboot_reasons: tuple[RebootReason, ...] = ()
    package_units: Optional[tuple[str, ...]] = ()
    is_pending_damaged: bool = False
    is_pending_aside: bool = False


@dataclass(frozen=True)
class Status(Request[HostStatus]):
    """
    Return what is true of the host now; changes nothing.
    """

    VERB = "status"
    NEEDS_LEASE = False


@dataclass(frozen=True)
class OwnCounters:
    """
    What a runtime says of itself, since it started.

    Attributes:
        requests: Requests to the generating routes that it answered with a 2xx, or by its own
            fault with a 5xx.
        errors: Those answered with a 5xx.
        answers_5xx: Answers with a 5xx on any route, for any reason.
        excused: Answers with a 5xx on a generating route for a full queue, or for a deadline that
            the client set.
    """

    requests: int
    errors: int
    answers_5xx: int
    excused: int = 0


@dataclass(frozen=True)
class ProxyCounters:
    """
    What HAProxy saw of a slot, since HAProxy started.

    Attributes:
        attempts: Requests sent to the slot, each repetition included.
        answers_2xx, answers_4xx, answers_5xx: Answers of the slot that went to clients.
        connection_errors: Requests for which no connection to the slot could be made.
        response_errors: Requests that got no answer, or a broken one.
        cut_answers: Answers that the slot ended before they were complete.
        retries: Failed attempts that were repeated, on this or on the other slot.
        redispatches: Those that were repeated on the other slot.
        sessions: Requests in flight or queued now.
    """

    attempts: int
    answers_2xx: int
    answers_4xx: int
    answers_5xx: int
    connection_errors: int
    response_errors: int
    cut_answers: int
    retries: int
    redispatches: int
    sessions: int


@dataclass(frozen=True)
class SlotCounters:
    """
    Cumulative counters of one slot, by its own word and by HAProxy's.

    Attributes:
        own: None when the runtime's metrics cannot be read.
        proxy: None when HAProxy did not answer.
        problem: Why one of them is None.
        restarts: Restarts by systemd.
        unit: systemd's ActiveState.
    """

    own: Optional[OwnCounters]
    proxy: Optional[ProxyCounters]
    problem: Optional[str]
    restarts: int
    is_ready: bool
    unit: str


@dataclass(frozen=True)
class Measurement:
    slots: dict[SlotName, SlotCounters]


@dataclass(frozen=True)
class Measure(Request[Measurement]):
    """
    Return the counters of every slot; changes nothing.
    """

    VERB = "measure"
    NEEDS_LEASE = False


# -- provisioning


@dataclass(frozen=True)
class PathFacts:
    """
    Attributes:
        type: file, directory, link or other.
        mode: Permission bits in octal, four digits.
        target: Of a link.
        sha256: None where no hash was asked for, and for a secret.
        mac: HMAC-SHA256 of the content of a secret, under the key of the query.
        text: Content of a file with another hash than the wanted one, where it is no secret.
        certificate: First one of a file that HAProxy could serve, DER in base64, where asked for.
    """

    type: Annotated[str, OneOf(("file", "directory", "link", "other"))]
    mode: str
    owner: str
    group: str
    size: int
    target: Optional[str] = None
    sha256: Optional[str] = None
    mac: Optional[str] = None
    text: Optional[str] = None
    certificate: Optional[str] = None


@dataclass(frozen=True)
class UserFacts:
    """
    Attributes:
        groups: Groups that it is a member of, beside its own.
        is_locked: No password opens it.
    """

    group: str
    shell: str
    home: str
    groups: tuple[str, ...]
    is_locked: bool


@dataclass(frozen=True)
class UnitFacts:
    """
    Attributes:
        load, active, enabled: LoadState, ActiveState, UnitFileState of systemd.
        stale: The unit's file changed after systemd read it.
        fragment: File that systemd read the unit from; empty for a unit without one.
        drop_ins: Files that change it.
    """

    load: str
    active: str
    enabled: str
    stale: bool
    fragment: str = ""
    drop_ins: tuple[str, ...] = ()


@dataclass(frozen=True)
class VenvFacts:
    """
    Attributes:
        is_recorded: Its files were recorded when it was built.
        altered: First names of files that are not as recorded: changed, missing or added.
        altered_count: Number of all of them.
        problem: Why its Python does not run; None where it does, or was not tried because files
            are altered.
        uncompared: Its torch has to be compared on the GPUs: none could be used when it was built,
            or some had no free memory in an earlier boot.
        full_gpus: Numbers of GPUs on which it was not compared in this boot: they had no free
            memory.
    """

    is_recorded: bool
    altered: tuple[str, ...]
    altered_count: int
    problem: Optional[str]
    uncompared: bool = False
    full_gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Listener:
    program: str
    pid: int


@dataclass(frozen=True)
class PciDevice:
    """
    A GPU or an NVSwitch of NVIDIA.

    Attributes:
        place: Domain, bus, device and function, such as 0000:1b:00.0.
        device, class_code: Device id and class on the PCI bus, four and six hexadecimal digits.
        bound: Kernel driver that has the device; null: none.
    """

    place: str
    device: PciId
    class_code: str
    bound: Optional[str]


@dataclass(frozen=True)
class KernelModule:
    """
    A kernel module of the NVIDIA driver on the disk, as modinfo(8) describes it.
    """

    module: str
    version: str
    license: str


@dataclass(frozen=True)
class Kernel:
    """
    A kernel of the host.

    Attributes:
        bootable: /boot has its image.
        headers: The headers that a module is built with are there.
        old_initramfs: Its initramfs is older than the configuration of modules.
    """

    release: KernelRelease
    running: bool
    bootable: bool
    headers: bool
    old_initramfs: bool
    modules: tuple[KernelModule, ...]


@dataclass(frozen=True)
class DriverPackage:
    """
    A package of the driver, or of a kernel, that dpkg knows.

    Attributes:
        origin: Name of its source package.
        complete: It is installed, and was configured.
        held: It is on hold.
    """

    package: PackageName
    version: PackageVersion
    origin: str
    complete: bool
    held: bool


@dataclass(frozen=True)
class GpuState:
    """
    One GPU as nvidia-smi shows it; null: it does not have that setting.

    Attributes:
        power_w: Power limit in watts.
        power_min_w, power_max_w: What it may be set to.
        ecc, mig: In force.
        next_ecc, next_mig: From the next reset or reboot on.
    """

    bus: str
    persistence: Optional[bool]
    power_w: Optional[float]
    power_min_w: Optional[float]
    power_max_w: Optional[float]
    ecc: Optional[bool]
    next_ecc: Optional[bool]
    mig: Optional[bool]
    next_mig: Optional[bool]


@dataclass(frozen=True)
class GpuHost:
    """
    What the step of the NVIDIA driver is decided from.

    Attributes:
        devices: GPUs and NVSwitches on the PCI bus.
        secure_boot: null: the firmware has no such setting.
        mok_enrolled: The firmware trusts the key that signs built modules; null: not known.
        packages: Of the driver and of kernels.
        leftovers: Files of an installation without packages.
        repositories: Files below /etc/apt that name a package source of NVIDIA.
        old_lists: apt's lists are older than a day, or than slipway's package source.
        boot_free: Free bytes of the file system of /boot.
        initramfs_size: Size in bytes of the largest initramfs.
        loaded: Modules that matter to the driver and are loaded.
        library: Version of the management library; null: there is none.
        holders: Processes that have a device of the driver open.
        gpus: As nvidia-smi lists them.
        smi_problem: Why nvidia-smi shows no GPU; null: it does.
        fabric: State of each GPU in the NVLink fabric; empty without an NVSwitch.
    """

    devices: tuple[PciDevice, ...]
    kernels: tuple[Kernel, ...]
    secure_boot: Optional[bool]
    mok_enrolled: Optional[bool]
    packages: tuple[DriverPackage, ...]
    leftovers: tuple[str, ...]
    repositories: tuple[str, ...]
    old_lists: bool
    boot_free: int
    initramfs_size: int
    loaded: tuple[str, ...]
    library: Optional[str]
    holders: tuple[str, ...]
    gpus: tuple[GpuState, ...]
    smi_problem: Optional[str]
    fabric: tuple[str, ...]


@dataclass(frozen=True)
class AptChange:
    """
    What apt would do to one package.

    Attributes:
        before: Installed version; null: it would be installed anew.
        after: Version that it would have; null: it would be removed.
        archive: Where that comes from, as apt prints it.
    """

    package: InstalledName
    before: Optional[PackageVersion]
    after: Optional[PackageVersion]
    archive: str


@dataclass(frozen=True)
class Simulation:
    """
    Attributes:
        problem: Why apt would not do it; null: it would.
    """

    changes: tuple[AptChange, ...]
    problem: Optional[str]


@dataclass(frozen=True)
class Facts:
    """
    Attributes:
        paths: None where nothing is there.
        packages: Installed version; None for a package that is not installed.
        listings: Size in bytes of each entry, by directory.
        room: Free bytes of the file system of each path.
        haproxy: Description of the running HAProxy, which names its configuration; None where
            none answers.
        pythons: Versions that the host can make an environment with, such as "3.11".
        driver: Version of the loaded NVIDIA kernel module; None without one.
        untouched: Those of `conffiles` that are as their package installed them.
        venvs: None where there is none.
        immutable: Those of the paths, and of the directories that they are in, that the file
            system protects from every change (chattr +i or +a).
        pending: What the host takes back by itself unless it is confirmed.
        reboot_reasons: Why it has to be rebooted; empty: it has not.
        gpus: Models of the GPUs that the loaded driver has.
        gpu_count: How many it has.
        gpu_modules: Flavour of its kernel modules, "open" or "proprietary"; None: not known.
        nvswitch: The host has NVSwitches.
        uvm: nvidia_uvm is loaded, without which no program uses CUDA.
        gpu: None: it was not asked for.
        simulation: None: it was not asked for.
    """

    paths: dict[str, Optional[PathFacts]]
    packages: dict[str, Optional[str]]
    users: dict[str, Optional[UserFacts]]
    units: dict[str, UnitFacts]
    listings: dict[str, dict[str, int]]
    listeners: tuple[Listener, ...]
    room: dict[str, int]
    haproxy: Optional[str]
    lease: Optional[LeaseStatus]
    pythons: tuple[str, ...]
    machine: str
    os_id: str
    codename: str
    has_apt: bool
    driver: Optional[str]
    untouched: tuple[str, ...] = ()
    venvs: dict[str, Optional[VenvFacts]] = field(default_factory=dict)
    immutable: tuple[str, ...] = ()
    pending: Optional[Pending] = None
    reboot_reasons: tuple[RebootReason, ...] = ()
    gpus: tuple[str, ...] = ()
    gpu_count: int = 0
    gpu_modules: Optional[str] = None
    nvswitch: bool = False
    uvm: bool = False
    gpu: Optional[GpuHost] = None
    simulation: Optional[Simulation] = None


@dataclass(frozen=True)
class FactQuery(Request[Facts]):
    """
    Return facts for provisioning; changes nothing.

    Attributes:
        paths: Wanted SHA-256 of each path; "" asks for no hash.
        secrets: A random key of this run for each path with secret content.  The host returns the
            HMAC of its content under that key, and no hash and no text.  The query says nothing
            about the wanted content, so a host that lacks the secret cannot test guesses of it.
        certificates: Those of `secrets` that hold a certificate and its key.
        port: Public port whose listeners are asked for.
        room: Paths whose free bytes are asked for.
        haproxy: Ask the running HAProxy for its description.
        conffiles: Configuration files of packages; asked is whether somebody changed them.
        venvs: Python environments, and standalone Pythons, whose files are compared with what was
            recorded.
        deep: Compare each of those files by its hash, not only those with another size or time.
        gpu: Ask for everything that concerns GPUs and their driver.
        install: Packages whose installation apt simulates.
        pins: Text of apt preferences that apply to the simulation, in place of slipway's own.
    """

    VERB = "facts"
    NEEDS_LEASE = False
    ANSWER_MAX = 16 * 2**20

    paths: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, Digest] = field(default_factory=dict)
    certificates: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    listings: tuple[str, ...] = ()
    port: Optional[int] = None
    room: tuple[str, ...] = ()
    haproxy: bool = False
    conffiles: tuple[str, ...] = ()
    venvs: tuple[str, ...] = ()
    deep: bool = False
    gpu: bool = False
    install: tuple[PackageName, ...] = ()
    pins: str = ""


REQUESTS: dict[str, type[Request[Any]]] = {
    request.VERB: request
    for request in (
        Status,
        Measure,
        FactQuery,
        LeaseAcquire,
        LeaseRenew,
        LeaseRelease,
        StateWrite,
        StateRead,
        KeysRead,
        KeysWrite,
        DeadmanArm,
        DeadmanConfirm,
        DeadmanDisarm,
        DeadmanTest,
        JournalAppend,
        JournalRead,
        StageMissing,
        StageCommit,
        PythonPlace,
        VenvBuild,
        SlotStart,
        SlotStop,
        Revive,
        Golden,
        TrafficSet,
        TrafficDrain,
        DoorSet,
        PublicAsk,
        Reboot,
        CertificateSet,
        ChallengeSet,
        GoodRecord,
        GoodRollback,
        Retire,
    )
}
