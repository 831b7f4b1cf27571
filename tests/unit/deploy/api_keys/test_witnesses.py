"""
Which host is believed: one that lies, beside hosts that are away or were installed anew.
"""

from contextlib import contextmanager

import pytest

from deploy.api_keys import commands, spread
from deploy.api_keys.commands import (
    KeyOptions,
    add_key,
    revoke_key,
    rotate_key,
    sync_keys,
    sync_keys_if_any,
)
from deploy.api_keys.key_list import KeyList, agreed
from deploy.errors import FleetDiffers, UsageError
from deploy.host.api_keys import file_of, stored
from deploy.host.protocol import ApiKey, KeySecret, KeysHeld, KeysWrite
from deploy.transport.client import HostClient
from tests.local_host import LOST_BEFORE, local_hosts

NOW = 1_790_000_000
EVIL = ApiKey("evil", 2**53, NOW, (KeySecret("e" * 64, NOW),))


class Fleet:
    def __init__(self, transports):
        self.transports = transports
        self.clients = {n: HostClient(t, actor="me", sudo=False) for n, t in transports.items()}
        for transport in transports.values():
            transport.system.layout.etc.mkdir(parents=True, exist_ok=True)

    def layout(self, name):
        return self.transports[name].system.layout

    def forge(self, name, *keys, version=2**53):
        self.layout(name).api_keys.write_bytes(file_of(version, keys))

    def reinstall(self, name):
        self.layout(name).api_keys.unlink()

    def state(self, host, name):
        """
        Return what *host* holds: valid, revoked or none.
        """
        key = KeyList.of(stored(self.layout(host))).get(name)
        return "none" if key is None else "valid" if key.secrets else "revoked"

    def states(self, name):
        return [self.state(host, name) for host in self.clients]

    def add(self, name="web"):
        return add_key(self.clients, name, KeyOptions(), NOW)

    @contextmanager
    def without(self, *names):
        for name in names:
            self.transports[name].is_cut = True
        yield
        for name in names:
            self.transports[name].is_cut = False


@pytest.fixture
def fleet(request):
    with local_hosts(*(f"h{n}" for n in range(request.param))) as transports:
        yield Fleet(transports)


def hosts(*counts):
    return pytest.mark.parametrize("fleet", counts, indirect=True)


@hosts(3, 5)
def test_a_host_that_forges_the_first_list_adds_no_key(fleet):
    fleet.forge("h0", EVIL)
    synced = sync_keys(fleet.clients)
    assert synced.disputed == {"h0": ("evil",)}
    assert synced.error.exit_code == 26
    assert set(fleet.states("evil")[1:]) == {"none"}
    assert not fleet.layout("h1").api_keys.exists()

    issued = fleet.add()  # beside the lie
    assert issued.token
    assert fleet.states("web") == ["valid"] * len(fleet.clients)
    assert set(fleet.states("evil")[1:]) == {"none"}


@hosts(3)
@pytest.mark.parametrize("does", ["is installed anew", "is away"])
def test_a_hostile_host_beside_one_true_list_changes_nothing_there(fleet, does):
    fleet.add()
    fleet.forge("h0", EVIL, ApiKey("web", 2**53, NOW, ()))
    if does == "is away":
        with fleet.without("h2"):
            synced = sync_keys(fleet.clients)
    else:
        fleet.reinstall("h2")
        synced = sync_keys(fleet.clients)
    assert "h0" in synced.disputed
    assert fleet.state("h1", "web") == "valid"
    assert fleet.states("evil")[1:] == ["none", "none"]


@hosts(3)
def test_one_list_witnesses_nothing(fleet):
    fleet.add()
    before = fleet.layout("h0").api_keys.read_bytes()
    fleet.layout("h2").api_keys.write_text("{torn")
    with fleet.without("h1"), pytest.raises(FleetDiffers, match=r"h2, h1: .*nothing was changed"):
        revoke_key(fleet.clients, "web", NOW)
    assert fleet.layout("h0").api_keys.read_bytes() == before


def test_no_host_witnesses_itself():
    """
    Not by naming a key twice, and not by keys without a list.
    """
    assert agreed([KeyList(1, (EVIL, EVIL)), KeyList(0, ()), KeyList(0, ())], 3).keys == ()
    assert KeyList.of(KeysHeld(None, (EVIL,))) == KeyList(0, ())
    assert agreed([KeyList(1, (EVIL,)), KeyList(1, (EVIL,))], 3).keys == (EVIL,)  # the control


@hosts(3)
@pytest.mark.parametrize("does", ["is installed anew", "is away"])
def test_a_revoked_key_does_not_come_back_after_partial_outages(fleet, does):
    fleet.add()
    with fleet.without("h2"):
        revoke_key(fleet.clients, "web", NOW)
    if does == "is away":
        with fleet.without("h1"):
            synced = sync_keys(fleet.clients)
            assert synced.disputed["h0"] == ("web",)
    else:
        fleet.reinstall("h1")
        assert sync_keys(fleet.clients).disputed["h0"] == ("web",)
        assert fleet.state("h1", "web") != "valid"
    assert fleet.state("h0", "web") == "revoked"

    assert revoke_key(fleet.clients, "web", NOW + 1).error is None
    assert fleet.states("web") == ["revoked"] * 3
    with pytest.raises(UsageError, match="no such key"):
        revoke_key(fleet.clients, "web", NOW + 1)


@hosts(3)
def test_three_states_of_one_key_stay_until_they_are_settled(fleet):
    for number in range(3):
        key = ApiKey("web", number + 1, NOW, (KeySecret(str(number) * 64, NOW),))
        fleet.forge(f"h{number}", key, version=number + 1)
    assert set(sync_keys(fleet.clients).disputed) == {"h0", "h1", "h2"}
    assert fleet.states("web") == ["valid"] * 3
    with pytest.raises(UsageError, match="earlier tokens"):
        rotate_key(fleet.clients, "web", 60, None, NOW + 1)
    rotated = rotate_key(fleet.clients, "web", 0, None, NOW + 1)
    assert rotated.error is None
    assert len({fleet.layout(n).api_keys.read_bytes() for n in fleet.clients}) == 1


@hosts(4)
def test_a_new_token_needs_more_than_half_of_the_hosts(fleet):
    with fleet.without("h2", "h3"), pytest.raises(FleetDiffers, match="2 of 4 hosts answer"):
        fleet.add()
    assert fleet.states("web") == ["none"] * 4
    for name in ("h2", "h3"):
        fleet.transports[name].fail("keys.write", LOST_BEFORE)
    with pytest.raises(FleetDiffers, match="2 of 4 hosts have") as caught:
        fleet.add()
    assert "keys.rotate" in caught.value.fix


@hosts(4)
def test_a_revocation_goes_to_those_that_answer_and_is_to_be_repeated(fleet):
    fleet.add()
    with fleet.without("h2", "h3"), pytest.raises(FleetDiffers, match="2 of 4") as caught:
        revoke_key(fleet.clients, "web", NOW)
    assert "the same command again" in caught.value.fix
    assert fleet.states("web") == ["revoked", "revoked", "valid", "valid"]
    assert revoke_key(fleet.clients, "web", NOW + 1).error is None
    assert fleet.states("web") == ["revoked"] * 4


@hosts(3)
def test_a_revocation_that_one_host_alone_remembers_can_be_settled(fleet):
    fleet.add()
    revoke_key(fleet.clients, "web", NOW)
    for name in ("h1", "h2"):
        fleet.reinstall(name)
    assert sync_keys(fleet.clients).disputed == {"h0": ("web",)}
    assert revoke_key(fleet.clients, "web", NOW + 1).error is None
    assert fleet.states("web") == ["revoked"] * 3


@hosts(1, 2)
def test_a_forged_version_stops_no_later_change(fleet):
    """
    The last version has no next one.
    """
    fleet.add()
    web = KeyList.of(stored(fleet.layout("h0"))).get("web")
    fleet.forge("h0", ApiKey("web", 2**53, NOW, web.secrets))
    assert rotate_key(fleet.clients, "web", 0, None, NOW + 1).error is None
    assert fleet.add("ann").error is None
    assert revoke_key(fleet.clients, "web", NOW + 2).error is None


@hosts(3)
def test_an_answer_after_the_deadline_changes_no_later_round(fleet, monkeypatch):
    """
    The host is named, and the token is shown.
    """
    real, late = spread.on_each, []

    def on_each(names, work, *, within_s):
        if isinstance(names, dict) and "h2" in names and spread_writes:
            errors = real([n for n in names if n != "h2"], work, within_s=within_s)
            late.append(lambda: work("h2"))
            return errors | {"h2": FleetDiffers("h2: late", why="late", fix="wait")}
        for one in late:
            one()
        return real(names, work, within_s=within_s)

    spread_writes = True
    read = commands.read_lists(fleet.clients)
    monkeypatch.setattr(commands, "read_lists", lambda _: read)
    monkeypatch.setattr(spread, "on_each", on_each)
    merged = spread.merge

    def merge_late(lists):
        for one in late:
            one()  # arrives while the answers are compared
        return merged(lists)

    monkeypatch.setattr(spread, "merge", merge_late)
    issued = fleet.add()
    assert issued.token
    assert list(issued.spread.missed) == ["h2"]
    assert "h2" not in issued.spread.hosts


@hosts(3)
def test_a_fleet_without_keys_is_asked_once(fleet):
    assert sync_keys_if_any(fleet.clients) is None
    verbs = [type(request) for t in fleet.transports.values() for _, request, _ in t.calls]
    assert KeysWrite not in verbs
    fleet.add()
    fleet.reinstall("h1")
    assert sync_keys_if_any(fleet.clients).changed == ("h1",)
