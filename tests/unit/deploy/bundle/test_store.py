import os

import pytest

from deploy.bundle import store as stores
from deploy.errors import BundleTampered, UsageError


def refusal(store, name):
    with pytest.raises(UsageError) as caught:
        store.get(name)
    return caught.value


def test_a_bundle_is_found_by_version_digest_and_its_beginning(workshop):
    """
    As an operator would name it.
    """
    made = workshop.build()

    for name in ("v1", made.digest, made.digest[:8]):
        assert workshop.store.get(name) == made


def test_a_name_that_no_bundle_has_lists_those_there_are(workshop):
    """
    Also a beginning that is too short to mean anything.
    """
    made = workshop.build()

    for name in ("v9", made.digest[:3]):
        assert made.digest[:12] in refusal(workshop.store, name).why


def test_a_version_of_two_bundles_is_not_guessed(workshop):
    """
    Built twice from other code: the operator says which.
    """
    first = workshop.build()
    (workshop.runtime / "__main__.py").write_text("print(2)\n")
    second = workshop.build()

    error = refusal(workshop.store, "v1")

    assert first.digest[:12] in error.why
    assert second.digest[:12] in error.why


def age(bundle, seconds):
    os.utime(bundle.directory, (1_000_000 - seconds, 1_000_000 - seconds))


def test_the_newest_is_what_was_built_last(workshop):
    """
    Building an old one again makes it the newest.
    """
    first, second = workshop.build("v1"), workshop.build("v2")
    age(first, 60), age(second, 30)
    assert workshop.store.newest() == second

    workshop.build("v1")

    assert [b.version for b in workshop.store.list()] == ["v1", "v2"]


def test_an_empty_store_says_how_to_fill_it(workshop):
    """
    The first `inv release` of a fresh clone.
    """
    with pytest.raises(UsageError, match="has no bundle"):
        workshop.store.newest()


def test_weights_are_linked_not_copied(workshop):
    """
    Tens of gigabytes are on disk once.
    """
    made = workshop.build()
    weights = next(f for f in made.manifest.model.files if f.path == "model.safetensors")

    assert made.blob(weights.sha256).samefile(workshop.model / "model.safetensors")


def test_weights_of_another_disk_are_copied(workshop, monkeypatch):
    """
    Where a link is not possible; the same bundle comes out.
    """
    linked = workshop.build()

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(stores.os, "link", refuse)
    workshop.store = stores.BundleStore(workshop.root / "other")
    copied = workshop.build()

    weights = next(f for f in copied.manifest.model.files if f.path == "model.safetensors")
    assert copied.digest == linked.digest
    assert not copied.blob(weights.sha256).samefile(workshop.model / "model.safetensors")
    assert sorted(p.name for p in copied.blobs.iterdir()) == sorted(
        p.name for p in linked.blobs.iterdir()
    )


def test_a_model_that_changes_while_it_is_read_is_refused(workshop, monkeypatch):
    """
    A download that is still running.
    """
    real = stores._take

    def take(source, draft):
        found = real(source, draft)
        if source.name == "model.safetensors":
            with source.open("ab") as file:
                file.write(b"more")
        return found

    monkeypatch.setattr(stores, "_take", take)

    with pytest.raises(BundleTampered, match="it changed while it was read"):
        workshop.build()


def test_building_again_repairs_a_damaged_bundle(workshop):
    """
    "inv bundle" is the fix for what was damaged on disk.
    """
    made = workshop.build()
    made.archive_path.write_bytes(b"damaged")
    weights = next(f for f in made.manifest.model.files if f.path == "model.safetensors")
    made.blob(weights.sha256).unlink()
    made.blob(weights.sha256).write_bytes(b"damaged")

    again = workshop.build()

    assert again.archive_path.read_bytes() != b"damaged"
    assert made.blob(weights.sha256).samefile(workshop.model / "model.safetensors")


def test_a_bundle_is_in_the_store_whole_or_not_at_all(workshop, monkeypatch):
    """
    A disk that fills up leaves nothing that looks like one.
    """

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores.Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        workshop.build()

    assert workshop.store.list() == ()
    assert list((workshop.store.root / "bundles").iterdir()) == []
