"""
Flags, tables and documents of `inv keys.*`.
"""

import json

import pytest

from deploy.api_keys.commands import IssuedToken, KeyOptions
from deploy.api_keys.key_list import KeyList
from deploy.api_keys.spread import HeldLists, Spread
from deploy.cli import key_flags, key_report
from deploy.errors import TransportError, UsageError
from deploy.host.protocol import ApiKey, KeySecret, KeysHeld, KeysStamp

NOW = 1_790_000_000
FLAGS = {"expires": "", "models": "", "rpm": "", "tpm": ""}
FLAGS |= {"weight": "1", "priority": "5", "concurrency": ""}
WEB = ApiKey(
    "web", 2, NOW, (KeySecret("b" * 64, NOW), KeySecret("a" * 64, NOW - 9, NOW + 60)), ("glm",), 60
)
GONE = ApiKey("old", 1, NOW, ())
HELD = KeysHeld(KeysStamp(2, "c" * 64), (GONE, WEB))


def test_flags_become_options():
    options = key_flags.key_options(
        **FLAGS | {"expires": "30d", "models": "glm, qwen", "rpm": "60", "concurrency": "4"}
    )
    assert options == KeyOptions(30 * 86400, ("glm", "qwen"), 60, concurrency=4)
    assert key_flags.key_options(**FLAGS) == KeyOptions()


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("expires", "30"),
        ("expires", "9999d"),
        ("expires", "0s"),
        ("expires", "999ms"),
        ("models", ","),
        ("models", " "),
        ("models", "glm,,qwen"),
        ("rpm", "0"),
        ("rpm", "many"),
        ("tpm", "-1"),
        ("weight", "101"),
        ("priority", "10"),
        ("concurrency", "0"),
        ("models", "a b"),
        ("models", "glm,"),
        ("expires", "0d"),
        ("models", ",".join(f"m{n}" for n in range(17))),
    ],
)
def test_a_wrong_flag_is_named(flag, text):
    with pytest.raises(UsageError, match=f"--{flag}"):
        key_flags.key_options(**FLAGS | {flag: text})


def test_the_list_has_no_hash():
    lists = HeldLists({"n1": HELD}, {})
    document = json.dumps(key_report.keys_json(lists))
    table = key_report.keys_table(lists, NOW)
    assert "a" * 64 not in document
    assert "b" * 64 not in document
    assert [row[0] for row in table.rows] == ["web"]
    assert "earlier token" in table.notes[0]
    assert key_report.lists_error(lists) is None


def test_hosts_that_differ_are_named():
    older = KeysHeld(KeysStamp(1, "d" * 64), (GONE,))
    lost = TransportError("n3: no answer", why="cut", fix="ping", host="n3")
    lists = HeldLists({"n1": HELD, "n2": older, "n4": HELD}, {"n3": lost})
    assert key_report.keys_json(lists)["behind"] == ["n2"]
    assert key_report.lists_error(lists).exit_code == 26
    assert "n2, n3" in key_report.lists_error(lists).what


def test_what_one_host_alone_says_is_named():
    none = KeysHeld(None, ())
    lists = HeldLists({"n1": HELD, "n2": none, "n3": none}, {})
    notes = key_report.keys_table(lists, NOW).notes
    assert any("n1: it alone says old (revoked), web (valid)" in note for note in notes)


def test_the_token_is_in_the_document_and_in_no_representation():
    issued = IssuedToken(WEB, "sk-slipway-x", Spread(KeyList(2, (WEB,)), ("n1",), ("n1",), {}))
    assert key_report.issued_json(issued)["token"] == "sk-slipway-x"
    assert "sk-slipway-x" not in repr(issued)
