import shutil

import pytest

from deploy.host.layout import APT_UNIT, DRIVER_BUILD_UNIT, SLOTS
from deploy.host.protocol import (
    ErrorKind,
    GoodRecord,
    GoodRelease,
    GoodRollback,
    HostError,
    JournalAppend,
    LeaseRelease,
    Measure,
    Retire,
    SlotStart,
    SlotStatus,
    TrafficSet,
)
from deploy.host.slots import systemd
from deploy.release.observe import ANSWER_WITHIN_S
from tests.local_host import BOOT
from tests.unit.deploy.host.fakes import BUNDLE, OTHER


def test_status_works_before_the_first_release(host):
    """
    After provisioning, with HAProxy down: nulls and no error.
    """
    host.system.proxy.is_running = False

    status = host.status()

    assert status.boot_id == BOOT
    assert (status.lease, status.good, status.unfinished, status.paused) == (None, (), None, None)
    for slot in SLOTS:
        assert status.slots[slot] == SlotStatus(
            bundle=None,
            version=None,
            unit="inactive",
            weight=None,
            haproxy=None,
            sessions=None,
            ready=False,
        )
    assert status.free_state_bytes == host.system.free


def test_status_works_without_any_state(host):
    """
    No directory, no units, a dangling link.
    """
    host.layout.slot_links.mkdir()
    host.layout.slot_link("blue").symlink_to(host.layout.release(BUNDLE))
    host.system.units.clear()

    blue = host.status().slots["blue"]
    assert (blue.bundle, blue.version, blue.unit) == (BUNDLE, None, "unknown")

    shutil.rmtree(host.layout.state)
    assert host.status().slots["blue"].bundle is None
    assert not host.layout.state.exists()


def test_status_names_a_certificate_that_a_restart_would_not_show(host, monkeypatch):
    """
    The port has another one than its file; a host without TLS has neither.
    """
    assert (host.status().certificate, host.status().is_certificate_kept) == (None, True)
    asked_s = []

    def shown(*, timeout_s):
        asked_s.append(timeout_s)
        return b"shown"

    monkeypatch.setattr(host.system, "served_certificate", shown)
    status = host.status()
    assert (status.certificate, status.is_certificate_kept) == ("c2hvd24=", False)
    assert max(asked_s) < ANSWER_WITHIN_S / 4


def test_status_shows_what_serves(leased, proxy):
    """
    Bundle, version, unit, weight, health and readiness of each slot.
    """
    leased.stage(BUNDLE, "v1")
    leased.call(SlotStart("blue", BUNDLE))
    leased.call(TrafficSet({"blue": 100}))

    slots = leased.status().slots

    assert slots["blue"] == SlotStatus(
        bundle=BUNDLE,
        version="v1",
        unit="active",
        weight=100,
        haproxy="UP",
        sessions=0,
        ready=True,
    )
    assert (slots["green"].haproxy, slots["green"].weight) == ("MAINT", 0)


def serve_only(host, bundle):
    host.layout.slot_links.mkdir(exist_ok=True)
    host.layout.slot_link("blue").symlink_to(host.layout.release(bundle))
    host.system.unit_of("blue").run()
    host.call(TrafficSet({"blue": 100}))


def test_a_shared_slot_is_not_all_the_traffic(leased):
    """
    While both slots have traffic, the record stays whole.
    """
    leased.stage(BUNDLE, "v1")
    leased.call(GoodRecord(BUNDLE, "v1", "blue"))
    serve_only(leased, BUNDLE)
    leased.stage(OTHER, "v2")
    leased.layout.slot_link("green").symlink_to(leased.layout.release(OTHER))
    leased.system.unit_of("green").run()
    leased.call(TrafficSet({"blue": 90, "green": 10}))
    assert "bbb" in leased.refusal(GoodRollback("r1")).why

    leased.call(TrafficSet({"green": 0}))
    assert leased.call(GoodRollback("r1")).good


def test_a_host_without_the_record_gets_it_once_it_serves(leased):
    """
    It joined later: what it has on record came after the release that the fleet goes back to.
    """
    leased.stage(OTHER, "v2")
    leased.call(GoodRecord(OTHER, "v2", "blue"))
    leased.stage(BUNDLE, "v1")
    serve_only(leased, BUNDLE)

    leased.call(GoodRollback("r0", BUNDLE, "v1"))

    assert leased.status().good == (GoodRelease("r0", BUNDLE, "v1"),)


@pytest.mark.parametrize("part", ["manifest.json", "venv", "model"])
def test_a_release_that_cannot_start_is_not_good(leased, part):
    """
    Its manifest, its environment or its weights have gone; a link of a slot to it changes nothing.
    """
    leased.stage(BUNDLE, "v1")
    leased.call(GoodRecord(BUNDLE, "v1", "blue"))
    serve_only(leased, BUNDLE)
    release = leased.layout.release(BUNDLE)
    for name in ("venv", "model"):
        (release / name).symlink_to(leased.layout.opt)
    status = leased.status()
    assert (len(status.good), status.staged) == (1, (BUNDLE,))

    (release / part).unlink()
    if part != "manifest.json":
        (release / part).symlink_to(leased.layout.opt / "gone")

    status = leased.status()
    assert (status.good, status.staged) == ((), ())


def test_good_releases_are_recorded_and_rolled_back(leased):
    """
    `inv rollback` uses this list, oldest first.
    """
    for release, bundle, version in (("r1", BUNDLE, "v1"), ("r2", OTHER, "v2")):
        leased.call(LeaseRelease())
        leased.release = release
        leased.lease()
        leased.stage(bundle, version)
        leased.call(GoodRecord(bundle, version, "blue"))
    first, second = GoodRelease("r1", BUNDLE, "v1"), GoodRelease("r2", OTHER, "v2")
    assert leased.status().good == (first, second)

    error = leased.refusal(GoodRollback("r1"))
    assert error.kind == "PreconditionError"
    assert leased.status().good == (first, second)  # a way back that failed changes no record

    serve_only(leased, BUNDLE)
    assert leased.call(GoodRollback("r1")).good == (first,)

    assert leased.status().good == (first,)
    assert leased.status().unfinished is None


def test_a_release_that_was_retired_is_no_longer_good(leased):
    """
    A rollback could not return to it; the one that a slot has is listed in any case.
    """
    digests = [letter * 64 for letter in "abcde"]
    for number, bundle in enumerate(digests):
        leased.call(LeaseRelease())
        leased.release = f"r{number}"
        leased.lease()
        leased.stage(bundle, f"v{number}")
        leased.call(GoodRecord(bundle, f"v{number}", "blue"))
    assert len(leased.status().good) == 5  # negative control
    leased.layout.slot_links.mkdir(exist_ok=True)
    leased.layout.slot_link("blue").symlink_to(leased.layout.release(digests[0]))

    leased.call(Retire(keep=3))

    assert [good.version for good in leased.status().good] == ["v0", "v2", "v3", "v4"]
    leased.layout.slot_link("blue").unlink()
    leased.call(Retire(keep=3))
    assert [good.version for good in leased.status().good] == ["v2", "v3", "v4"]


def test_rolling_back_to_an_unrecorded_release_is_refused(leased):
    """
    The answer lists the recorded ones.
    """
    leased.call(GoodRecord(BUNDLE, "v1", "blue"))

    error = leased.refusal(GoodRollback("r9"))

    assert error.kind == "NothingToRollBackTo"
    assert "v1 (r1)" in error.why


def test_status_shows_the_progress_of_a_release(leased):
    """
    Unfinished from begin to end; its end may leave it paused.
    """
    leased.call(JournalAppend("release.begin", {"bundle": BUNDLE}))
    assert leased.status().unfinished.release == "r1"
    leased.call(JournalAppend("release.end", {"outcome": "paused"}))
    assert (leased.status().unfinished, leased.status().paused) == (None, "r1")
    leased.call(JournalAppend("release.begin", {"bundle": BUNDLE}))
    leased.call(JournalAppend("release.end", {"outcome": "promoted"}))

    assert (leased.status().unfinished, leased.status().paused) == (None, None)


def test_reading_verbs_write_nothing(host):
    """
    status and measure leave the disk unchanged.
    """
    before = sorted(host.root.rglob("*"))

    host.status(), host.call(Measure())

    assert sorted(host.root.rglob("*")) == before


def test_status_names_the_units_that_change_packages(host):
    """
    A provisioning run that was lost leaves them running, and nobody has the lease.
    """
    assert host.status().package_units == ()

    host.system.units[APT_UNIT].run()
    host.system.units[DRIVER_BUILD_UNIT].run()
    assert host.status().package_units == (APT_UNIT, DRIVER_BUILD_UNIT)

    host.system.units[APT_UNIT].fail()
    assert host.status().package_units == (DRIVER_BUILD_UNIT,)


def test_packages_are_unknown_where_systemd_does_not_answer(host, monkeypatch):
    def silent(*_):
        raise HostError(ErrorKind.COMMAND_FAILED, "systemctl failed", "timed out", "-")

    monkeypatch.setattr(systemd, "show", silent)

    assert host.status().package_units is None
