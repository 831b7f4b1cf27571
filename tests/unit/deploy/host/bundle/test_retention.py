import json

import pytest

from deploy.host.protocol import (
    DeadmanArm,
    DroppedRelease,
    GoodRecord,
    LeaseAcquire,
    LeaseRelease,
    Retire,
    SlotStart,
    StateWrite,
)
from tests.unit.deploy.bundle.builders import make_lock, make_model
from tests.unit.deploy.host.staged import assert_whole, send


def test_retiring_keeps_what_runs_and_what_a_rollback_needs(provisioned, workshop, keys):
    """
    Releases in slots and the last good ones stay, with venv, weights and wheels; the rest is
    removed.
    """
    bundles = {}
    for number in (1, 2, 3):
        workshop.model = make_model(workshop.root / f"m{number}", bytes([number]) * 64)
        workshop.lock = make_lock(workshop.wheels, version=f"{number}.0")
        bundle = bundles[number] = workshop.signed(keys[0], f"v{number}")
        send(provisioned, bundle, workshop)
        provisioned.release = f"r{number}"
        provisioned.call(LeaseRelease())
        provisioned.lease()
        provisioned.call(GoodRecord(bundle.digest, f"v{number}", "blue"))

    removed = provisioned.call(Retire(keep=2)).removed

    layout = provisioned.layout
    gone, kept = bundles[1], (bundles[2], bundles[3])
    assert removed["releases"] == (gone.digest,)
    assert removed["venvs"] == (gone.manifest.lock.digest,)
    assert removed["models"] == (gone.manifest.model.digest,)
    assert removed["blobs"] == (
        gone.manifest.model.files[1].sha256,
    )  # the weights; the rest is shared
    assert removed["wheels"] == ("tinydep-1.0-py3-none-any.whl",)
    for bundle in kept:
        assert_whole(layout.release(bundle.digest), bundle)


def test_retiring_keeps_the_release_of_a_slot_that_was_never_good(provisioned, bundle, workshop):
    """
    A canary that is being measured is not removed.
    """
    send(provisioned, bundle, workshop)
    provisioned.call(SlotStart("green", bundle.digest))

    assert provisioned.call(Retire(keep=1)).removed["releases"] == ()


def test_retiring_keeps_the_provisioned_venv(provisioned, bundle, workshop):
    """
    Otherwise the next `inv provision` would have a change.
    """
    send(provisioned, bundle, workshop)
    lock = bundle.manifest.lock.digest
    provisioned.layout.host_config.write_text(json.dumps({"locks": [lock]}))

    removed = provisioned.call(Retire(keep=1)).removed

    assert (removed["releases"], removed["venvs"], removed["wheels"]) == ((bundle.digest,), (), ())


def test_a_standalone_python_stays_as_long_as_an_environment_uses_it(provisioned, bundle, workshop):
    """
    Also that of a slot; one that no kept environment leads to any more is removed.
    """
    send(provisioned, bundle, workshop)
    layout, used, old = provisioned.layout, "a" * 64, "b" * 64
    for name in (used, old):
        program = layout.pythons / name / "bin" / "python3.11"
        program.parent.mkdir(parents=True)
        program.touch()
    link = layout.venvs / bundle.manifest.lock.digest / "bin" / "python"
    link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(layout.pythons / used / "bin" / "python3.11")
    provisioned.call(SlotStart("green", bundle.digest))

    assert provisioned.call(Retire(keep=1)).removed["pythons"] == (old,)
    assert [path.name for path in layout.pythons.iterdir()] == [used]


def test_leftovers_of_a_killed_verb_are_removed(provisioned, bundle, workshop):
    """
    Partial releases, and uploads that were never committed.
    """
    send(provisioned, bundle, workshop)
    layout = provisioned.layout
    for path in (layout.releases / ".tmp-x", layout.venvs / ".trash-y", layout.incoming / "old"):
        path.mkdir(parents=True)

    provisioned.call(Retire(keep=1))

    assert not (layout.releases / ".tmp-x").exists()
    assert not (layout.venvs / ".trash-y").exists()
    assert list(layout.incoming.iterdir()) == []


DIGESTS = [letter * 64 for letter in "abcdef"]


@pytest.fixture
def five(leased):
    """
    A host with five good releases, r0 to r4, and one that was staged only.
    """
    for number, bundle in enumerate(DIGESTS):
        leased.call(LeaseRelease())
        leased.release = f"r{number}"
        leased.fence = leased.lease()
        leased.stage(bundle, f"v{number}")
        if number < 5:
            leased.call(GoodRecord(bundle, f"v{number}", "blue"))
    return leased


def test_what_was_dropped_is_named(five):
    """
    By bundle, version and release id: `inv release` prints it.
    """
    dropped = five.call(Retire(keep=3)).dropped

    assert dropped == (
        DroppedRelease(DIGESTS[0], "v0", "r0"),
        DroppedRelease(DIGESTS[1], "v1", "r1"),
        DroppedRelease(DIGESTS[5], "v5", None),
    )
    assert [good.version for good in five.status().good] == ["v2", "v3", "v4"]
    assert five.call(Retire(keep=3)).dropped == ()


def test_a_damaged_release_takes_no_place_of_a_good_one(five):
    """
    `keep` counts what a rollback can return to.
    """
    (five.layout.release(DIGESTS[3]) / "manifest.json").unlink()

    dropped = five.call(Retire(keep=3)).dropped

    assert [good.version for good in five.status().good] == ["v1", "v2", "v4"]
    assert DroppedRelease(DIGESTS[3], None, "r3") in dropped


def test_the_target_of_the_desired_state_stays(five):
    """
    The text means nothing to the host: every digest in it stays, and nothing that only looks so.
    """
    text = {"target": DIGESTS[0], "plan": "0" * 64, "other": f"{DIGESTS[1]}a"}
    five.call(LeaseRelease())
    epoch_lease(five)
    five.call(StateWrite(1, json.dumps(text)))

    five.call(Retire(keep=1))

    assert five.status().staged == (DIGESTS[0], DIGESTS[4])


def test_where_the_host_would_go_back_by_itself_stays(five):
    """
    The slot that serves while another release is tried, and that release.
    """
    for slot, number in (("blue", 0), ("green", 5)):
        five.layout.slot_links.mkdir(exist_ok=True)
        five.layout.slot_link(slot).symlink_to(five.layout.release(DIGESTS[number]))
    five.call(DeadmanArm("green", "blue"))

    five.call(Retire(keep=1))

    assert five.status().staged == (DIGESTS[0], DIGESTS[4], DIGESTS[5])


def epoch_lease(host):
    request = LeaseAcquire(owner="ann@desk:1", ttl_s=30.0, epoch=1)
    host.fence = host.call(request).fence
