"""
Keys on hosts that run the real host program.
"""

import threading

import pytest

from deploy.api_keys import commands, spread
from deploy.api_keys.commands import KeyOptions, add_key, revoke_key, rotate_key, sync_keys
from deploy.api_keys.spread import read_lists
from deploy.api_keys.token import PREFIX, hash_of
from deploy.errors import FleetDiffers, PreconditionError, TransportError, UsageError
from deploy.host.api_keys import file_of
from deploy.host.protocol import ApiKey, KeySecret
from deploy.transport.client import HostClient
from tests.local_host import LOST_BEFORE, local_hosts

NOW = 1_790_000_000
NAMES = ("n1", "n2", "n3", "n4")


class Fleet:
    def __init__(self, transports):
        self.transports = transports
        self.clients = {n: HostClient(t, actor="me", sudo=False) for n, t in transports.items()}
        for transport in transports.values():
            transport.system.layout.etc.mkdir(parents=True, exist_ok=True)

    def text(self, name):
        return self.transports[name].system.layout.api_keys.read_text()

    def texts(self):
        return {self.text(name) for name in self.transports}

    def add(self, name, **options):
        return add_key(self.clients, name, KeyOptions(**options), NOW)


@pytest.fixture
def fleet():
    with local_hosts(*NAMES) as transports:
        yield Fleet(transports)


def test_a_key_is_on_every_host_and_its_token_on_none(fleet):
    issued = fleet.add("web", requests_per_minute=60)

    assert issued.token.startswith(PREFIX)
    assert issued.error is None
    assert len(fleet.texts()) == 1
    assert hash_of(issued.token) in fleet.text("n1")
    for name in NAMES:
        layout = fleet.transports[name].system.layout
        assert issued.token not in fleet.text(name)
        assert issued.token not in layout.journal.read_text()
        assert hash_of(issued.token) not in layout.journal.read_text()
    sent = [request for t in fleet.transports.values() for _, request, _ in t.calls]
    assert issued.token not in repr(sent)
    assert issued.token not in repr(issued)


def test_a_host_that_is_away_is_named_and_converges_with_the_next_command(fleet):
    fleet.transports["n3"].is_cut = True
    issued = fleet.add("web")
    assert isinstance(issued.error, FleetDiffers)
    assert "n3" in issued.error.what
    assert issued.spread.hosts == ("n1", "n2", "n4")

    fleet.transports["n3"].is_cut = False
    assert read_lists(fleet.clients).behind == ("n3",)
    assert fleet.add("ann").error is None
    assert len(fleet.texts()) == 1
    assert hash_of(issued.token) in fleet.text("n3")


def test_a_revoked_key_does_not_come_back_with_a_host_that_missed_it(fleet):
    fleet.add("web")
    fleet.transports["n1"].is_cut = True
    assert revoke_key(fleet.clients, "web", NOW).error is not None

    fleet.transports["n1"].is_cut = False
    for name in NAMES[1:]:
        fleet.transports[name].is_cut = True
    with pytest.raises(FleetDiffers, match="n1 alone"):  # an operator who sees n1 alone
        rotate_key(fleet.clients, "web", 0, None, NOW)
    for name in NAMES[1:]:
        fleet.transports[name].is_cut = False

    assert sync_keys(fleet.clients).keys.active == ()
    assert len(fleet.texts()) == 1


def test_a_host_that_was_installed_anew_gets_the_keys_of_the_others(fleet):
    fleet.add("web")
    fleet.transports["n2"].system.layout.api_keys.unlink()
    result = sync_keys(fleet.clients)
    assert result.changed == ("n2",)
    assert len(fleet.texts()) == 1
    assert sync_keys(fleet.clients).changed == ()


def test_a_damaged_list_is_replaced(fleet):
    fleet.add("web")
    fleet.transports["n2"].system.layout.api_keys.write_text("{torn")
    assert read_lists(fleet.clients).behind == ("n2",)
    assert sync_keys(fleet.clients).changed == ("n2",)
    assert len(fleet.texts()) == 1


def test_a_hostile_host_adds_no_key_to_the_others_and_revokes_none(fleet):
    """
    Its list stays on it, and is named; a rotation settles it, and a forged version stops nothing.
    """
    good = fleet.add("web")
    layout = fleet.transports["n3"].system.layout
    web = read_lists(fleet.clients).merged.get("web")
    evil = ApiKey("evil", 9, NOW, (KeySecret("e" * 64, NOW),))
    for forged in ((evil, web), (ApiKey("web", 2**50, NOW, ()),)):
        layout.api_keys.write_bytes(file_of(2**53, forged))
        lists = read_lists(fleet.clients)
        assert lists.behind == ("n3",)
        assert lists.merged.keys == (web,)
        synced = sync_keys(fleet.clients)
        assert synced.changed == ()
        assert list(synced.disputed) == ["n3"]
        assert synced.error.exit_code == 26
        assert "n3: " in synced.error.what
        assert read_lists(fleet.clients).merged.keys == (web,)
    assert hash_of(good.token) in fleet.text("n1")
    rotated = rotate_key(fleet.clients, "web", 0, None, NOW + 1)  # settles what n3 revoked
    assert rotated.error is None
    assert len(fleet.texts()) == 1
    assert hash_of(rotated.token) in fleet.text("n3")
    web = rotated.key

    # The control: what two hosts hold counts.
    for name in ("n3", "n4"):
        path = fleet.transports[name].system.layout.api_keys
        path.write_bytes(file_of(9, (evil, web)))
    assert read_lists(fleet.clients).merged.get("evil")


def test_two_operators_at_once_keep_both_changes(fleet, monkeypatch):
    """
    Both read before either writes; each host takes the first, and both end with one list.
    """
    both_have_read = threading.Barrier(2)
    read, errors = spread.read_lists, []

    def read_together(clients):
        lists = read(clients)
        both_have_read.wait(60)
        return lists

    monkeypatch.setattr(commands, "read_lists", read_together)

    def work(name):
        try:
            fleet.add(name)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("ann", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    lists = read(fleet.clients)
    assert [key.key_name for key in lists.merged.keys] == ["ann", "bob"]
    assert lists.behind == ()
    assert len(fleet.texts()) == 1


def test_of_two_keys_of_one_name_one_wins_and_the_other_operator_is_told(fleet, monkeypatch):
    """
    The token that is not in force is not shown.
    """
    read = spread.read_lists

    def read_then_lose(clients):
        lists = read(clients)
        monkeypatch.setattr(commands, "read_lists", read)
        # The other operator's key was changed twice, so it is newer.
        fleet.add("web")
        rotate_key(clients, "web", 0, None, NOW)
        return lists

    monkeypatch.setattr(commands, "read_lists", read_then_lose)
    with pytest.raises(PreconditionError, match="not in force"):
        fleet.add("web")
    assert len(fleet.texts()) == 1


def test_without_any_host_nothing_is_changed(fleet):
    for transport in fleet.transports.values():
        transport.is_cut = True
    with pytest.raises(TransportError, match="n1, n2, n3, n4"):
        fleet.add("web")


def test_a_write_whose_answer_is_lost_is_named(fleet):
    fleet.transports["n2"].fail("keys.write", LOST_BEFORE)
    error = fleet.add("web").error
    assert error.what.startswith("n2:")
    assert "keys.sync" in error.fix


def test_names_are_not_used_twice(fleet):
    fleet.add("web")
    with pytest.raises(UsageError, match="taken"):
        fleet.add("web")
    revoke_key(fleet.clients, "web", NOW)
    with pytest.raises(UsageError, match="taken"):
        fleet.add("web")


def test_keys_change_while_a_release_holds_the_leases(fleet):
    from deploy.host.protocol import LeaseAcquire, Status

    for client in fleet.clients.values():
        client.call(LeaseAcquire("ann@desk:1", 60, epoch=3))
    fleet.add("web")
    assert all(c.call(Status()).lease.owner == "ann@desk:1" for c in fleet.clients.values())
