import threading

import pytest

from deploy.host.system import Clock
from tests.unit.deploy.host.fakes import Host, Refused, short_directory

HELD = "lease.acquire"


def refusal(host, verb, **args):
    with pytest.raises(Refused) as caught:
        host.call(verb, **args)
    return caught.value


def test_a_second_owner_is_told_who_holds_it_and_how_long(host):
    """
    Two operators at once: the second learns of the first.
    """
    host.lease(ttl_s=30)
    host.clock.pass_s(10)

    error = refusal(host, "lease.acquire", owner="bob@desk:2", ttl_s=30)

    assert error.kind == "LeaseHeld"
    assert "ann@desk:1" in error.what
    assert "20 s" in error.why


def test_numbers_only_grow(host):
    """
    Whoever takes over is above everybody before, given back or run out.
    """
    first = host.lease(ttl_s=10)
    host.call("lease.release")
    second = host.lease(ttl_s=10)
    host.clock.pass_s(11)
    third = host.lease(owner="bob@desk:2")

    assert first < second < third


def test_numbers_grow_also_when_the_lease_file_is_lost(host):
    """
    The journal remembers the highest one.
    """
    fence = host.lease()
    host.layout.lease.unlink()
    assert host.lease() > fence

    host.layout.lease.write_text("{torn")
    assert host.lease() > fence + 1


def test_an_owner_may_ask_again_for_the_same_release(host):
    """
    The answer may have been lost; the number that nobody got is fenced off.
    """
    first = host.lease()
    second = host.lease()

    assert second > first
    host.fence = first
    assert refusal(host, "lease.renew", ttl_s=30).kind == "LeaseLost"


def test_an_owner_may_not_take_a_second_release(host):
    """
    Negative control: the same owner with another release is another operator.
    """
    host.lease()
    host.release = "r2"

    assert refusal(host, "lease.acquire", owner="ann@desk:1", ttl_s=30).kind == "LeaseHeld"


def test_renewing_moves_the_end(host):
    """
    A lease that is renewed in time lasts.
    """
    host.lease(ttl_s=30)
    for _ in range(5):
        host.clock.pass_s(20)
        host.call("lease.renew", ttl_s=30)

    assert host.call("status")["lease"]["owner"] == "ann@desk:1"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda host: host.clock.pass_s(31), "ended 1.0 s ago"),
        (lambda host: host.reboot("another"), "booted since"),
        (lambda host: host.call("lease.release"), "given back"),
        (lambda host: host.layout.lease.unlink(), "no lease"),
    ],
    ids=["expired", "rebooted", "given back", "lost"],
)
def test_an_ended_lease_renews_nothing_and_changes_nothing(host, what, said):
    """
    Whoever was fenced off learns why, at his next verb.
    """
    host.lease(ttl_s=30)
    what(host)

    for verb, args in (("lease.renew", {"ttl_s": 30}), ("retire", {"keep": 2})):
        error = refusal(host, verb, **args)
        assert error.kind == "LeaseLost"
        assert said in error.why


def test_setting_the_wall_clock_moves_no_lease(host):
    """
    A step of NTP neither ends a lease nor prolongs it.
    """
    host.lease(ttl_s=30)

    host.clock.wall += 3600
    host.call("lease.renew", ttl_s=30)
    host.clock.wall -= 7200
    host.clock.steady += 31

    assert host.call("status")["lease"] is None


def test_status_shows_no_ended_lease(host):
    """
    lease is null when nobody holds one.
    """
    assert host.call("status")["lease"] is None
    host.lease(ttl_s=30)
    assert host.call("status")["lease"]["fence"] == host.fence
    host.clock.pass_s(30)
    assert host.call("status")["lease"] is None


def test_a_lease_of_somebody_else_is_not_given_back(host):
    """
    lease.release ends one's own and leaves another's alone.
    """
    old = host.lease(ttl_s=30)
    host.clock.pass_s(31)
    new = host.lease(owner="bob@desk:2")
    host.fence = old

    assert host.call("lease.release") == {"released": False}
    assert host.call("status")["lease"]["fence"] == new


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("slot.start", {"slot": "blue", "bundle": "a" * 64}),
        ("slot.stop", {"slot": "blue"}),
        ("traffic.set", {"weights": {"blue": 100}}),
        ("traffic.drain", {"slot": "blue"}),
        ("stage.commit", {"bundle": "a" * 64}),
        ("golden", {"slot": "blue"}),
        ("good.record", {"bundle": "a" * 64, "version": "v1", "slot": "blue"}),
        ("good.rollback", {"to_release": "r1"}),
        ("retire", {"keep": 2}),
        ("journal.append", {"step": "release.begin"}),
        ("lease.renew", {"ttl_s": 30}),
    ],
)
def test_nothing_is_changed_without_a_lease(host, verb, args):
    """
    Each verb that has an effect asks for the lease before it writes a line or touches a thing.
    """
    assert refusal(host, verb, **args).kind == "PreconditionError"
    host.fence = 7
    assert refusal(host, verb, **args).kind == "LeaseLost"

    assert not host.layout.journal.exists()
    assert host.runner.calls == []


def test_of_many_at_once_one_gets_it():
    """
    Taking the lease is one step: twenty at the same time make one owner.
    """
    with short_directory() as root:
        host = Host(root, clock=Clock())
        answers = []

        def take(number):
            answers.append(host.answer("lease.acquire", {"owner": f"op{number}", "ttl_s": 30}))

        threads = [threading.Thread(target=take, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert [a["result"]["fence"] for a in answers if a["ok"]] == [1]
    assert {a["error"]["kind"] for a in answers if not a["ok"]} == {"LeaseHeld"}
