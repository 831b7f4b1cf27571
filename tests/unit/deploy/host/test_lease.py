import json
import threading

import pytest

from deploy.host.protocol import (
    REQUESTS,
    DeadmanArm,
    DeadmanConfirm,
    DeadmanDisarm,
    DoorSet,
    Golden,
    GoodRecord,
    GoodRollback,
    HostError,
    JournalAppend,
    LeaseAcquire,
    LeaseGranted,
    LeaseRelease,
    LeaseRenew,
    Reboot,
    Retire,
    Revive,
    SlotStart,
    SlotStop,
    StageCommit,
    StateWrite,
    Status,
    TrafficDrain,
    TrafficSet,
)
from tests.unit.deploy.host.fakes import TemporaryHost, short_directory


def test_a_second_owner_is_refused_with_the_holder_and_its_expiry(host):
    """
    Two operators at once: the second learns of the first.
    """
    host.lease(ttl_s=30)
    host.clock.pass_s(10)

    error = host.refusal(LeaseAcquire("bob@desk:2", 30))

    assert error.kind == "LeaseHeld"
    assert "ann@desk:1" in error.what
    assert "20 s" in error.why


def test_a_lease_may_wait_for_what_is_not_confirmed(host):
    """
    Nobody renews the lease of the change any more, so the host is going back: a lease of whoever
    only provisions it would stop that.  Without the wish it is granted: a release takes over so.
    """
    host.lease(ttl_s=30)
    host.call(DeadmanArm("green", "blue"))
    held = host.refusal(LeaseAcquire("bob@desk:2", 30, needs_settled=True))
    host.clock.pass_s(31)
    pending = host.refusal(LeaseAcquire("bob@desk:2", 30, needs_settled=True))

    assert (held.kind, pending.kind) == ("LeaseHeld", "PreconditionError")
    assert "release r1 is not confirmed" in pending.what
    host.layout.pending.write_text("{")
    assert host.refusal(LeaseAcquire("bob@desk:2", 30, needs_settled=True)).kind == pending.kind
    assert host.call(LeaseAcquire("bob@desk:2", 30)).fence

    host.layout.pending.unlink()
    host.clock.pass_s(31)
    assert host.call(LeaseAcquire("eve@desk:3", 30, needs_settled=True)).fence


@pytest.mark.parametrize(
    ("passed_s", "is_rebooted", "has_program", "is_granted"),
    [
        (31 + 290, False, True, False),
        (31 + 310, False, True, True),
        (31, False, False, True),
        (290, True, True, False),
        (310, True, True, True),
    ],
)
def test_a_host_that_cannot_go_back_may_be_provisioned(
    host, passed_s, is_rebooted, has_program, is_granted
):
    """
    What is missing there may be what keeps it from going back.
    """
    host.lease(ttl_s=30)
    host.call(DeadmanArm("green", "blue"))
    if not has_program:
        host.layout.host_program.unlink()
    if is_rebooted:
        host.system.boot = "another"
        host.clock.pass_s(-host.system.steady_s())
    host.clock.pass_s(passed_s)
    assert host.call(Status()).pending.is_stuck == is_granted
    wish = LeaseAcquire("bob@desk:2", 30, needs_settled=True)
    if is_granted:
        assert host.call(wish).fence
    else:
        assert "300 s" in host.refusal(wish).fix


def test_numbers_only_grow(host):
    """
    A new lease has a higher fence than all before it, released or expired.
    """
    first = host.lease(ttl_s=10)
    host.call(LeaseRelease())
    second = host.lease(ttl_s=10)
    host.clock.pass_s(11)
    third = host.lease(owner="bob@desk:2")

    assert first < second < third


def test_numbers_grow_also_when_the_lease_file_is_lost(host):
    """
    The journal has the highest fence.
    """
    fence = host.lease()
    host.layout.lease.unlink()
    assert host.lease() > fence

    host.layout.lease.write_text("{torn")
    assert host.lease() > fence + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"fence": -1},
        {"fence": 10**30},
        {"fence": True},
        {"epoch": -1},
        {"epoch": "1"},
        {"owner": 5},
        {"release": 1e308},
        {"release": []},
        {"boot_id": None},
        {"expires_steady_s": float("inf")},
        {"expires_steady_s": float("nan")},
        {"expires_steady_s": 1e308},
        {"expires_steady_s": 10**400},
        {"expires_at": "soon"},
    ],
    ids=str,
)
def test_a_damaged_lease_is_none(host, changes):
    """
    Every verb answers, and numbers go on growing.
    """
    fence = host.lease()
    lease = json.loads(host.layout.lease.read_text())
    host.layout.lease.write_text(json.dumps(lease))
    assert host.status().lease  # negative control
    host.layout.lease.write_text(json.dumps(lease | changes))
    assert host.status().lease is None
    assert host.lease(owner="bob@desk:2") == fence + 1


def test_an_owner_may_take_the_lease_again_for_the_same_release(host):
    """
    The answer may have been lost; the first fence is no longer accepted.
    """
    first = host.lease()
    second = host.lease()

    assert second > first
    host.fence = first
    assert host.refusal(LeaseRenew(30)).kind == "LeaseLost"


def test_an_owner_may_not_take_a_second_release(host):
    """
    Negative control: the same owner with another release counts as another operator.
    """
    host.lease()
    host.release = "r2"

    assert host.refusal(LeaseAcquire("ann@desk:1", 30)).kind == "LeaseHeld"


def test_a_renewal_extends_the_lease(host):
    """
    A lease that is renewed in time does not expire.
    """
    host.lease(ttl_s=30)
    for _ in range(5):
        host.clock.pass_s(20)
        host.call(LeaseRenew(30))

    assert host.status().lease.owner == "ann@desk:1"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda host: host.clock.pass_s(31), "expired 1.0 s ago"),
        (lambda host: setattr(host.system, "boot", "another"), "booted since"),
        (lambda host: host.call(LeaseRelease()), "it was released"),
        (lambda host: host.layout.lease.unlink(), "no lease"),
    ],
    ids=["expired", "rebooted", "released", "lost"],
)
def test_an_ended_lease_cannot_be_renewed_or_used(host, what, said):
    """
    The next verb of its old owner is refused with the reason.
    """
    host.lease(ttl_s=30)
    what(host)

    for request in (LeaseRenew(30), Retire(keep=2)):
        error = host.refusal(request)
        assert error.kind == "LeaseLost"
        assert said in error.why


def test_setting_the_wall_clock_does_not_change_a_lease(host):
    """
    A step by NTP neither ends nor extends it.
    """
    host.lease(ttl_s=30)

    host.clock.wall += 3600
    host.call(LeaseRenew(30))
    host.clock.wall -= 7200
    host.clock.steady += 31

    assert host.status().lease is None


def test_status_shows_no_ended_lease(host):
    """
    lease is null without a holder.
    """
    assert host.status().lease is None
    host.lease(ttl_s=30)
    assert host.status().lease.fence == host.fence
    host.clock.pass_s(30)
    assert host.status().lease is None


def test_only_the_owner_can_release_a_lease(host):
    """
    lease.release of another owner changes nothing.
    """
    old = host.lease(ttl_s=30)
    host.clock.pass_s(31)
    new = host.lease(owner="bob@desk:2")
    host.fence = old

    assert host.call(LeaseRelease()).released is False
    assert host.status().lease.fence == new


CHANGES = (
    SlotStart("blue", "a" * 64),
    SlotStop("blue"),
    TrafficSet({"blue": 100}),
    TrafficDrain("blue"),
    StageCommit("a" * 64),
    Revive(),
    Golden("blue"),
    GoodRecord("a" * 64, "v1", "blue"),
    GoodRollback("r1"),
    Retire(keep=2),
    JournalAppend("release.begin"),
    StateWrite(1, "{}"),
    DeadmanArm("green", "blue"),
    DeadmanConfirm("a" * 64, "v1"),
    DeadmanDisarm(),
    LeaseRenew(30),
    DoorSet(is_open=False),
    Reboot("b"),
)


def test_every_verb_that_needs_the_lease_is_tried():
    """
    The list above matches the protocol.
    """
    needs_lease = {verb for verb, request in REQUESTS.items() if request.NEEDS_LEASE}

    assert {request.VERB for request in CHANGES} == needs_lease


@pytest.mark.parametrize("request_", CHANGES, ids=lambda request: request.VERB)
def test_nothing_is_changed_without_a_lease(host, request_):
    """
    Each verb with an effect checks the lease before it writes a line or changes anything.
    """
    assert host.refusal(request_).kind == "PreconditionError"
    host.fence = 7
    assert host.refusal(request_).kind == "LeaseLost"

    assert not host.layout.journal.exists()
    assert host.system.calls == []


def test_one_of_many_concurrent_owners_gets_the_lease():
    """
    Taking the lease is atomic: twenty concurrent calls give one owner.
    """
    with short_directory() as root:
        host = TemporaryHost(root)
        host.system.use_real("lock", "wall_s", "steady_s", "sleep")
        answers = []

        def take(number):
            try:
                answers.append(host.call(LeaseAcquire(f"op{number}", 30)))
            except HostError as error:
                answers.append(error)

        threads = [threading.Thread(target=take, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert [a.fence for a in answers if isinstance(a, LeaseGranted)] == [1]
    assert {a.kind for a in answers if isinstance(a, HostError)} == {"LeaseHeld"}


def test_an_epoch_is_granted_to_one_owner(host):
    """
    Two operators that ask for one epoch: the second is refused, also after the first has ended.
    """
    host.call(LeaseAcquire("ann@desk:1", 30, epoch=7))
    host.clock.pass_s(31)

    error = host.refusal(LeaseAcquire("bob@desk:2", 30, epoch=7))
    assert error.kind == "EpochOld"
    assert "7" in error.why
    assert host.refusal(LeaseAcquire("bob@desk:2", 30, epoch=6)).kind == "EpochOld"
    assert host.call(LeaseAcquire("bob@desk:2", 30, epoch=8)).fence > 1
    assert host.status().epoch == 8


def test_the_owner_of_an_epoch_may_take_its_lease_again(host):
    """
    After a lost connection: the new number refuses what the old one still sends.
    """
    first = host.call(LeaseAcquire("ann@desk:1", 30, epoch=7)).fence
    host.clock.pass_s(31)
    assert host.call(LeaseAcquire("ann@desk:1", 30, epoch=7)).fence > first


def test_a_lease_is_stolen_with_a_newer_epoch_only(host):
    """
    The lease of another operator: refused without `steal`, and with the same epoch.
    """
    host.fence = host.call(LeaseAcquire("ann@desk:1", 30, epoch=7)).fence
    host.release = "r2"

    assert host.refusal(LeaseAcquire("bob@desk:2", 30, epoch=8)).kind == "LeaseHeld"
    assert host.refusal(LeaseAcquire("bob@desk:2", 30, epoch=7, steal=True)).kind == "LeaseHeld"
    host.call(LeaseAcquire("bob@desk:2", 30, epoch=8, steal=True))

    assert host.refusal(LeaseRenew(30)).kind == "LeaseLost"
    assert host.status().lease.owner == "bob@desk:2"


def test_an_epoch_outlives_its_lease_file(host):
    """
    The journal has it.
    """
    host.call(LeaseAcquire("ann@desk:1", 30, epoch=7))
    host.layout.lease.unlink()

    assert host.status().epoch == 7
    assert host.refusal(LeaseAcquire("bob@desk:2", 30, epoch=7)).kind == "EpochOld"


def test_a_lease_without_an_epoch_keeps_the_newest_one(host):
    """
    Work that changes no desired state does not reset the epochs.
    """
    host.call(LeaseAcquire("ann@desk:1", 30, epoch=7))
    host.call(LeaseRelease())
    host.clock.pass_s(31)
    host.call(LeaseAcquire("bob@desk:2", 30))

    assert host.status().epoch == 7
