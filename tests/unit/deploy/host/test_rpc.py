import json

import pytest

from deploy.host.__main__ import VERBS, _function, handle
from deploy.host.rpc import one_line, parse_request


def refused(system, verb, text):
    answered = json.loads(handle(system, verb, text))
    assert answered["ok"] is False
    return answered["error"]


def test_an_empty_document_is_a_call_without_lease_or_arguments():
    """
    `slipway-host.pyz status </dev/null` works by hand.
    """
    request = parse_request("status", "")

    assert (request.fence, request.release, request.actor) == (None, None, "unknown")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "list"),
        ('{"fences": 1}', "fences"),
        ('{"fence": "1"}', "fence"),
        ('{"args": [1]}', "args"),
    ],
)
def test_a_malformed_document_is_refused_with_what_is_wrong(host, text, said):
    """
    The answer names what can't be read, and the tool does not break.
    """
    error = refused(host.system, "status", text)

    assert error["kind"] == "UsageError"
    assert said in error["why"]


def test_an_unknown_verb_names_those_there_are(host):
    """
    A controller that is newer than the host tool learns what this one can do.
    """
    error = refused(host.system, "slot.explode", "")

    assert error["kind"] == "UsageError"
    assert "slot.start" in error["why"]


def test_unknown_and_wrong_arguments_are_refused(leased):
    """
    An argument that the verb doesn't have, or of the wrong kind, is never ignored.
    """
    for args, said in (
        ({"slot": "red"}, "blue or green"),
        ({"slot": "blue", "timeout_s": -1}, "seconds"),
        ({"slot": "blue", "tiemout_s": 5}, "tiemout_s"),
    ):
        error = leased.answer("golden", args)["error"]
        assert error["kind"] == "UsageError"
        assert said in error["what"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_function(verb):
    """
    The table of verbs names functions that exist.
    """
    assert callable(_function(verb))


def test_a_full_disk_is_told_as_one(host, monkeypatch):
    """
    "No space left on device" anywhere is DiskTooSmall.
    """

    def full(*_, **__):
        raise OSError(28, "No space left on device", "/var/lib/slipway/lease.json")

    monkeypatch.setattr("deploy.host.lease.write_atomic", full)

    error = host.answer("lease.acquire", {"owner": "ann", "ttl_s": 30})["error"]

    assert error["kind"] == "DiskTooSmall"
    assert "/var/lib/slipway/lease.json" in error["what"]


def test_one_line_keeps_the_last_lines_that_say_something():
    """
    A traceback becomes its end.
    """
    assert one_line("a\n\n b \nc\n", last=2) == "b / c"
