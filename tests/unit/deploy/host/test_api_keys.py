"""
The list of API keys of a host.
"""

import hashlib
import json
import stat

import pytest

from deploy.host.protocol import (
    KEYS_MAX,
    ApiKey,
    KeySecret,
    KeysRead,
    KeysStamp,
    KeysWrite,
    LeaseAcquire,
)
from deploy.host.slots.runtime_api import api_token


@pytest.fixture(autouse=True)
def _configured(host):
    host.layout.etc.mkdir(parents=True)


def key(name="web", version=1, sha256=None, **more):
    digest = sha256 or f"{sum(map(ord, name)):064x}"
    return ApiKey(name, version, 1_790_000_000, (KeySecret(digest, 1_790_000_000),), **more)


def written(host, keys, version=1, expected=None):
    result = host.call(KeysWrite(expected, version, tuple(keys)))
    assert result.is_written
    return result.held.stamp


def test_a_list_is_read_as_it_was_written(host):
    """
    `status` has its stamp, and the file is for the group of the runtime alone.
    """
    keys = (
        key("batch", priority=9, concurrency=2),
        key("web", requests_per_minute=60, models=("glm",)),
    )
    stamp = written(host, keys)

    held = host.call(KeysRead())
    assert (held.stamp, held.keys, held.damage) == (stamp, keys, None)
    assert host.status().keys == stamp
    found = host.layout.api_keys.stat()
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert found.st_gid == host.system.account("slipway").gid


def test_a_host_without_a_list_says_so(host):
    held = host.call(KeysRead())
    assert (held.stamp, held.keys, held.damage) == (None, (), None)


def test_only_who_has_read_the_list_may_replace_it(host):
    """
    The refused operator gets what the host holds, and nothing of it is lost.
    """
    first = written(host, [key("ann")])

    late = host.call(KeysWrite(None, 1, (key("bob"),)))
    assert not late.is_written
    assert late.held == host.call(KeysRead())
    assert [k.key_name for k in late.held.keys] == ["ann"]

    both = (key("ann"), key("bob", 2))
    assert written(host, both, 2, first).version == 2


def test_the_same_list_again_is_harmless(host):
    """
    An answer that was lost on its way is asked for again.
    """
    stamp = written(host, [key()])
    lines = len(host.journal())
    assert written(host, [key()], expected=KeysStamp(9, "f" * 64)) == stamp
    assert len(host.journal()) == lines


def test_keys_change_while_another_operator_holds_the_lease(host):
    """
    A key has to be revoked at once, also during a release; the lease goes on.
    """
    fence = host.call(LeaseAcquire("ann@desk:1", 30)).fence
    host.fence = None
    written(host, [key()])
    assert host.status().lease.fence == fence


def test_the_journal_has_names_and_no_hashes(host):
    stamp = written(host, [key("ann"), key("web", sha256="ab" * 32)])
    written(host, [key("ann"), ApiKey("web", 2, 1_790_000_001, ())], 2, stamp)

    text = host.layout.journal.read_text()
    events = [line for line in host.journal() if line.get("step") == "keys.write"]
    assert [event["args"]["changed"] for event in events] == [["ann", "web"], ["web"]]
    assert "ab" * 8 not in text
    assert "ab" * 8 not in json.dumps(events)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ((key("web"), key("ann")), "ordered"),
        ((key("web"), key("web")), "ordered"),
        ((key("ann", sha256="a" * 64), key("web", sha256="a" * 64)), "same token"),
        (tuple(key(f"k{n:04d}", sha256=f"{n:064x}") for n in range(KEYS_MAX + 1)), "at most"),
        ((key("web", models=("glm",) * 17),), "models"),
    ],
)
def test_a_list_that_is_none_is_refused(host, keys, problem):
    assert problem in host.refusal(KeysWrite(None, 1, keys)).why
    assert not host.layout.api_keys.exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key_name", "../web"),
        ("key_name", "web\nx"),
        ("weight", 0),
        ("priority", 10),
        ("concurrency", 0),
        ("requests_per_minute", 0),
        ("secrets", [{"sha256": "A" * 64, "created_at": 1}]),
        ("models", ["glm 4"]),
        ("token", "sk-secret"),
    ],
)
def test_hostile_keys_are_refused(host, field, value):
    plain = {"key_name": "web", "changed": 1, "changed_at": 1, "secrets": []}
    good = host.answer("keys.write", {"expected": None, "version": 1, "keys": [plain]})
    assert good["ok"]
    host.layout.api_keys.unlink()

    bad = {"expected": None, "version": 1, "keys": [{**plain, field: value}]}
    assert not host.answer("keys.write", bad)["ok"]
    assert not host.layout.api_keys.exists()


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{torn",
        "[]",
        '{"format": 2, "version": 1, "keys": []}',
        "[" * 100_000,
        '{"format": 1, "version": 1, "keys": 5}',
        "x" * (2 << 20),
    ],
)
def test_a_damaged_list_never_breaks_status(host, damage):
    """
    It is named, and the next change replaces it.
    """
    written(host, [key()])
    host.layout.api_keys.write_text(damage)

    status = host.status()
    assert status.keys is None
    assert status.keys_damage
    written(host, [key()], version=2)
    assert host.status().keys.version == 2


def test_a_link_in_place_of_the_list_is_not_followed(host, tmp_path):
    other = tmp_path / "other"
    other.write_text('{"format": 1, "version": 1, "keys": []}')
    host.layout.api_keys.symlink_to(other)
    assert "link" in host.call(KeysRead()).damage
    written(host, [key()])
    assert "web" not in other.read_text()


def test_the_host_program_has_a_token_of_its_own_once_there_are_keys(host):
    """
    The runtime gets its hash; tokens of the fleet file go first, for older releases know no other.
    """
    assert api_token(host.layout) is None
    written(host, [key()])
    token = api_token(host.layout)
    assert len(token) >= 43
    assert host.layout.host_key.read_text() == hashlib.sha256(token.encode()).hexdigest()
    assert stat.S_IMODE(host.layout.host_token.stat().st_mode) == 0o600
    assert stat.S_IMODE(host.layout.host_key.stat().st_mode) == 0o640
    written(host, [key("ann")], 2, host.call(KeysRead()).stamp)
    assert api_token(host.layout) == token

    host.layout.environment.write_text('SLIPWAY_API_TOKENS="one,two"\n')
    assert api_token(host.layout) == "one"


@pytest.mark.parametrize("loss", ["host_key", "host_token", "other hash", "torn token"])
def test_a_lost_half_of_the_host_token_is_repaired(host, loss):
    stamp = written(host, [key()])
    layout, before = host.layout, api_token(host.layout)
    if loss == "other hash":
        layout.host_key.write_text("f" * 64)
    elif loss == "torn token":
        layout.host_token.write_text("")
    else:
        getattr(layout, loss).unlink()

    written(host, [key("ann")], 2, stamp)
    token = api_token(layout)
    assert layout.host_key.read_text() == hashlib.sha256(token.encode()).hexdigest()
    assert stat.S_IMODE(layout.host_key.stat().st_mode) == 0o640
    assert (token == before) == (loss in {"host_key", "other hash"})
