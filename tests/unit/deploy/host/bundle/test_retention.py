import json

from deploy.host.protocol import GoodRecord, LeaseRelease, Retire, SlotStart
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
