import errno
import json
import os
import types
import typing

import pytest

from deploy.host import __main__ as main_module
from deploy.host.__main__ import HANDLERS, handle, handler_of
from deploy.host.protocol import (
    REQUESTS,
    SCHEMA,
    Call,
    ErrorKind,
    LeaseAcquire,
    Status,
    result_type,
)
from deploy.host.rpc import parse_request
from deploy.host.text import one_line


def refused(system, verb, text):
    answered = json.loads(handle(system, verb, text))
    assert answered["ok"] is False
    return answered["error"]


def test_an_empty_document_is_a_call_without_lease_or_arguments():
    """
    `slipway-host.pyz status </dev/null` works by hand.
    """
    assert parse_request("status", "") == (Status(), Call(None, None, "unknown"))


def document(**more):
    return json.dumps({"schema": SCHEMA, **more})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "list"),
        (document(fences=1), "fences"),
        (document(fence="1"), "fence"),
        (document(args=[1]), "args"),
    ],
)
def test_a_malformed_document_is_refused_with_the_reason(host, text, said):
    """
    The answer names the unreadable part, and the program does not crash.
    """
    error = refused(host.system, "status", text)

    assert error["kind"] == "UsageError"
    assert said in error["why"]


def test_an_unknown_verb_lists_the_known_verbs(host):
    """
    For a controller that is newer than the host program.
    """
    error = refused(host.system, "slot.explode", "")

    assert error["kind"] == "UsageError"
    assert "slot.start" in error["why"]


def test_unknown_and_wrong_arguments_are_refused(leased):
    """
    An unknown argument, or one of the wrong type, is never ignored.
    """
    for args, said in (
        ({"slot": "red"}, "blue or green"),
        ({"slot": "blue", "timeout_s": -1}, "timeout_s: should be from"),
        ({"slot": "blue", "tiemout_s": 5}, "tiemout_s"),
    ):
        error = leased.answer("golden", args)["error"]
        assert error["kind"] == "UsageError"
        assert said in error["why"]


@pytest.mark.parametrize("request_", HANDLERS, ids=lambda request: request.VERB)
def test_every_handler_takes_its_request_and_returns_its_result(request_):
    """
    The table names existing functions with the types of the protocol.
    """
    _, _, request_type, returned = typing.get_type_hints(handler_of(request_)).items()

    assert request_type[1] is request_
    assert returned == ("return", result_type(request_))


def test_every_request_has_a_handler():
    """
    Every verb of the protocol has a handler, and every handler a verb.
    """
    assert set(HANDLERS) == set(REQUESTS.values())


def test_a_full_disk_is_disktoosmall(host, monkeypatch):
    """
    "No space left on device" in any verb.
    """

    def full(*_, **__):
        raise OSError(28, "No space left on device", "/var/lib/slipway/lease.json")

    monkeypatch.setattr("deploy.host.lease.write_spare", full)

    error = host.refusal(LeaseAcquire("ann", 30))

    assert error.kind == "DiskTooSmall"
    assert "/var/lib/slipway/lease.json" in error.what


@pytest.mark.parametrize(("inodes", "is_named"), [(0, True), (5, False)])
def test_a_disk_without_inodes_is_named(host, monkeypatch, inodes, is_named):
    """
    `df -h` shows free space there.
    """

    def statvfs(path):
        assert path == host.layout.state
        return types.SimpleNamespace(f_bavail=1000, f_files=1000, f_favail=inodes)

    monkeypatch.setattr(os, "statvfs", statvfs)

    error = main_module._host_error(
        OSError(errno.ENOSPC, "No space left on device", str(host.layout.state / "gone" / "x"))
    )

    assert error.kind is ErrorKind.DISK_TOO_SMALL
    assert ("no inode is" in error.why) is is_named


@pytest.mark.parametrize(
    ("number", "is_the_disk"), [(errno.EROFS, True), (errno.EIO, True), (errno.EBUSY, False)]
)
def test_a_disk_that_failed_is_named_before_any_other_remedy(number, is_the_disk):
    """
    Provisioning, the remedy of most verbs, cannot write either.
    """
    error = main_module._host_error(OSError(number, os.strerror(number), "/var/lib/slipway/x"))

    assert ("journalctl -k" in error.why) is is_the_disk


def test_one_line_keeps_the_last_non_empty_lines():
    """
    A traceback is reduced to its end.
    """
    assert one_line("a\n\n b \nc\n", last=2) == "b / c"
