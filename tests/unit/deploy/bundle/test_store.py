import dataclasses
import hashlib
import os

import pytest

from deploy.bundle import store as stores
from deploy.bundle.store import Bundle
from deploy.errors import BundleTampered, UsageError
from tests.unit.deploy.bundle.builders import FLEET


def refusal(store, name):
    with pytest.raises(UsageError) as caught:
        store.get(name, FLEET)
    return caught.value


def test_a_bundle_is_found_by_version_digest_and_prefix(workshop):
    """
    The names that an operator uses.
    """
    bundle = workshop.build()

    for name in ("v1", bundle.digest, bundle.digest[:8]):
        assert workshop.store.get(name, FLEET) == bundle


def test_an_unknown_name_lists_the_bundles(workshop):
    """
    Also a prefix that is too short.
    """
    bundle = workshop.build()

    for name in ("v9", bundle.digest[:3]):
        assert bundle.digest[:12] in refusal(workshop.store, name).why


def test_an_ambiguous_version_is_refused(workshop):
    """
    It was built twice from different code: the operator must choose.
    """
    first = workshop.build()
    (workshop.runtime / "__main__.py").write_text("print(2)\n")
    second = workshop.build()

    error = refusal(workshop.store, "v1")

    assert first.digest[:12] in error.why
    assert second.digest[:12] in error.why


def test_a_fleet_gets_its_own_bundles(workshop):
    """
    Two fleets may have a version of the same name, and hosts refuse that of another fleet.
    """
    own = workshop.build("v1")
    other = workshop.build("v1", fleet="staging")
    workshop.build("v2", fleet="staging")

    assert workshop.store.get("v1", FLEET) == workshop.store.newest(FLEET) == own
    assert workshop.store.get("v1", "staging") == other
    assert "for fleet prod" in refusal(workshop.store, "v2").why
    assert refusal(workshop.store, other.digest).what.endswith("not found")


def test_a_bundle_that_is_built_anew_replaces_one_in_the_old_format(workshop):
    """
    Its remedy is "inv bundle", after which the version must name one bundle.
    """
    new = workshop.build("v1")
    manifest = dataclasses.replace(new.manifest, format=1, fleet="", counter=0)
    directory = new.directory.with_name(manifest.digest)
    directory.mkdir()
    (directory / "manifest.json").write_bytes(manifest.to_bytes())
    old = Bundle(manifest.digest, manifest, directory, new.blobs)

    assert workshop.store.get("v1", FLEET) == new
    assert workshop.store.get(old.digest, FLEET) == old


def age(bundle, seconds):
    os.utime(bundle.directory, (1_000_000 - seconds, 1_000_000 - seconds))


def test_the_newest_bundle_is_the_one_built_last(workshop):
    """
    Rebuilding an old bundle makes it the newest.
    """
    first, second = workshop.build("v1"), workshop.build("v2")
    age(first, 60), age(second, 30)
    assert workshop.store.newest(FLEET) == second

    workshop.build("v1")

    assert [b.version for b in workshop.store.list()] == ["v1", "v2"]


def test_an_empty_store_says_how_to_fill_it(workshop):
    """
    As at the first `inv release` of a fresh clone.
    """
    with pytest.raises(UsageError, match="has no bundle"):
        workshop.store.newest(FLEET)


def test_weights_are_linked_not_copied(workshop):
    """
    Tens of gigabytes are on disk only once.
    """
    bundle = workshop.build()
    weights = next(f for f in bundle.manifest.model.files if f.path == "model.safetensors")

    assert bundle.blob(weights.sha256).samefile(workshop.model / "model.safetensors")


def test_weights_on_another_disk_are_copied(workshop, monkeypatch):
    """
    A link is not possible; the bundle is the same.
    """
    linked = workshop.build()

    def refuse(*_, **__):
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
    Such as a download in progress.
    """
    real, source = stores._take, workshop.model / "model.safetensors"

    def take(descriptor, draft):
        result = real(descriptor, draft)
        with source.open("ab") as file:
            file.write(b"more")
        return result

    monkeypatch.setattr(stores, "_take", take)

    with pytest.raises(BundleTampered, match="it changed while it was read"):
        workshop.build()


def test_building_again_repairs_a_damaged_bundle(workshop):
    """
    The fix of a damaged bundle is "inv bundle".
    """
    bundle = workshop.build()
    bundle.archive_path.write_bytes(b"damaged")
    weights = next(f for f in bundle.manifest.model.files if f.path == "model.safetensors")
    bundle.blob(weights.sha256).unlink()
    bundle.blob(weights.sha256).write_bytes(b"damaged")

    again = workshop.build()

    assert again.archive_path.read_bytes() != b"damaged"
    assert bundle.blob(weights.sha256).samefile(workshop.model / "model.safetensors")


@pytest.mark.parametrize("damage", [os.mkdir, os.mkfifo], ids=["directory", "pipe"])
def test_building_again_replaces_what_is_no_file(workshop, damage):
    """
    A pipe would be waited for.
    """
    bundle = workshop.build()
    bundle.archive_path.unlink()
    damage(bundle.archive_path)
    assert workshop.build().archive_path.is_file()


def test_a_store_that_cannot_be_read_is_named(workshop, monkeypatch):
    """
    With an error that a rollback goes on after: it needs no store.
    """
    workshop.build()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(workshop.root), "iterdir", refuse)
    with pytest.raises(BundleTampered, match="Permission denied"):
        workshop.store.versions(FLEET)


def test_a_bundle_is_stored_atomically(workshop, monkeypatch):
    """
    A full disk leaves no partial bundle.
    """

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores.Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        workshop.build()

    assert workshop.store.list() == ()
    assert list((workshop.store.root / "bundles").iterdir()) == []


def corrupt_by_link(bundle, tmp_path):
    other = tmp_path / "elsewhere"
    bundle.directory.rename(other)
    bundle.directory.symlink_to(other)


def corrupt_by_linked_file(bundle, tmp_path):
    other = tmp_path / "elsewhere"
    bundle.archive_path.rename(other)
    bundle.archive_path.symlink_to(other)


def corrupt_by_content(bundle, tmp_path):
    data = bundle.manifest_path.read_bytes()
    bundle.manifest_path.write_bytes(data.replace(b'"v1"', b'"v9"'))


def corrupt_by_folder(bundle, tmp_path):
    bundle.manifest_path.unlink()
    bundle.manifest_path.mkdir()


@pytest.mark.parametrize(
    ("corrupt", "why"),
    [
        (corrupt_by_link, "symbolic link"),
        (corrupt_by_linked_file, "symbolic link"),
        (corrupt_by_content, "that of another bundle"),
        (corrupt_by_folder, "not a file"),
    ],
)
def test_an_entry_that_is_not_what_its_name_says_is_refused(workshop, tmp_path, corrupt, why):
    """
    The name of a bundle is the hash of its manifest; it is compared at every read.
    """
    bundle = workshop.build()
    corrupt(bundle, tmp_path)

    with pytest.raises(BundleTampered) as caught:
        workshop.store.newest(FLEET)
    assert why in caught.value.why
    assert str(bundle.directory) in caught.value.fix


def test_a_changed_manifest_would_be_used_without_the_hash(workshop, tmp_path, monkeypatch):
    """
    Negative control: with the comparison switched off, the store returns the other version.
    """
    bundle = workshop.build()
    corrupt_by_content(bundle, tmp_path)
    monkeypatch.setattr(
        stores, "_read_manifest", lambda path: (path / "manifest.json").read_bytes()
    )
    assert workshop.store.newest(FLEET).version == "v9"


def test_a_manifest_of_endless_depth_is_refused(workshop):
    """
    With the right hash as its name; the parser's limit becomes an error of this bundle.
    """
    workshop.build()
    data = b"[" * 200_000
    directory = workshop.store.root / "bundles" / hashlib.sha256(data).hexdigest()
    directory.mkdir()
    (directory / "manifest.json").write_bytes(data)
    with pytest.raises(BundleTampered, match="its manifest cannot be read"):
        workshop.store.list()


@pytest.mark.parametrize("name", ["lost+found", "\x1b[2Jx", "A" * 64, "0" * 63, ".tmp-x"])
def test_an_entry_with_another_name_is_no_bundle(workshop, name):
    """
    It is neither read nor printed.
    """
    bundle = workshop.build()
    (workshop.store.root / "bundles" / name).mkdir()
    assert workshop.store.list() == (bundle,)
    assert name not in refusal(workshop.store, "v9").why
