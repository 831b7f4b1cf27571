import shutil

from deploy.host.layout import SLOTS
from tests.unit.deploy.host.fakes import BOOT, BUNDLE, OTHER


def test_a_host_where_nothing_was_released_answers(host):
    """
    Fresh from provisioning, HAProxy down: nulls and no error.
    """
    found = host.call("status")

    assert found["boot_id"] == BOOT
    assert (found["lease"], found["good"], found["unfinished"], found["paused"]) == (
        None,
        [],
        None,
        None,
    )
    for slot in SLOTS:
        seen = found["slots"][slot]
        assert (seen["bundle"], seen["version"], seen["model"]) == (None, None, None)
        assert (seen["weight"], seen["haproxy"], seen["sessions"]) == (None, None, None)
        assert (seen["unit"], seen["ready"], seen["restarts"]) == ("inactive", False, 0)
    assert found["disk_free"]["state"] > 0


def test_a_host_whose_state_is_gone_answers(host):
    """
    No directory, no units, a link to nowhere.
    """
    host.layout.slot_links.mkdir()
    host.layout.slot_link("blue").symlink_to(host.layout.release(BUNDLE))
    host.runner.units.clear()

    blue = host.call("status")["slots"]["blue"]
    assert (blue["bundle"], blue["version"], blue["unit"]) == (BUNDLE, None, "unknown")

    shutil.rmtree(host.layout.state)
    assert host.call("status")["slots"]["blue"]["bundle"] is None
    assert not host.layout.state.exists()


def test_what_serves_is_told(leased, proxy):
    """
    Bundle, version, model, unit, weight, health and readiness of each slot.
    """
    leased.stage(BUNDLE, "v1")
    leased.call("slot.start", slot="blue", bundle=BUNDLE)
    leased.call("traffic.set", weights={"blue": 100})

    found = leased.call("status")["slots"]

    blue = found["blue"]
    assert (blue["bundle"], blue["version"], blue["model"]) == (BUNDLE, "v1", "tiny")
    assert (blue["unit"], blue["enabled"], blue["ready"]) == ("active", True, True)
    assert (blue["weight"], blue["haproxy"], blue["admin"]) == (100, "UP", "ready")
    assert (found["green"]["haproxy"], found["green"]["weight"]) == ("MAINT", 0)


def test_good_releases_are_recorded_and_rolled_back(leased):
    """
    What `inv rollback` goes by, oldest first.
    """
    for release, bundle, version in (("r1", BUNDLE, "v1"), ("r2", OTHER, "v2")):
        leased.call("lease.release")
        leased.release = release
        leased.lease()
        leased.call("good.record", bundle=bundle, version=version, slot="blue")
    assert [(g["release"], g["bundle"], g["version"]) for g in leased.call("status")["good"]] == [
        ("r1", BUNDLE, "v1"),
        ("r2", OTHER, "v2"),
    ]

    leased.call("good.rollback", to_release="r1")

    assert [g["release"] for g in leased.call("status")["good"]] == ["r1"]
    assert leased.call("status")["unfinished"] is None


def test_rolling_back_to_what_was_never_good_is_refused(leased):
    """
    The answer lists what there is.
    """
    leased.call("good.record", bundle=BUNDLE, version="v1", slot="blue")

    answered = leased.answer("good.rollback", {"to_release": "r9"})["error"]

    assert answered["kind"] == "NothingToRollBackTo"
    assert "v1 (r1)" in answered["why"]


def test_the_life_of_a_release_is_told(leased):
    """
    Unfinished from begin to end; paused in between.
    """
    leased.call("journal.append", step="release.begin", data={"bundle": BUNDLE})
    assert leased.call("status")["unfinished"]["release"] == "r1"
    leased.call("journal.append", step="release.paused", data={"reason": "errors"})
    assert leased.call("status")["paused"]["reason"] == "errors"
    leased.call("journal.append", step="release.end", data={"outcome": "promoted"})

    found = leased.call("status")
    assert (found["unfinished"], found["paused"]) == (None, None)


def test_looking_writes_nothing(host):
    """
    status, measure and journal.read leave the disk as it was.
    """
    before = sorted(host.root.rglob("*"))

    host.call("status"), host.call("measure"), host.call("journal.read")

    assert sorted(host.root.rglob("*")) == before
